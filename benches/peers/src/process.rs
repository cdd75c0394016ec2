//! Contenders in their own processes, whose processor time can be read and which can be pinned to one core.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use larder_benches::RedisServer;

use crate::app;
use crate::contender::Contender;

/// The variable with the path of the installed Python original. `run` sets it.
const PYTHON: &str = "PEERS_PYTHON";

/// The assignment of cores: one for the client, one for the contender, and for Redis a third or else the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    all: usize,
    pinned: bool,
}

impl Cores {
    /// Pins no process, because safety doesn't depend on cores.
    pub(crate) fn any() -> Self {
        Self { all: cores(), pinned: false }
    }

    /// Pins this process to the first core, if there is a `taskset` and there are two cores or more.
    pub(crate) fn share_out() -> Self {
        let all = cores();
        let pinned = all > 1 && keep(std::process::id(), 0);
        Self { all, pinned }
    }

    /// Describes the assignment, as a part of a sentence.
    pub(crate) fn describe(self) -> String {
        match (self.pinned, self.all) {
            (false, _) => "no process kept to a core".to_owned(),
            (true, 2) => "one core for the server, the other for the client and Redis".to_owned(),
            (true, _) => "a core each for the server, the client and Redis".to_owned(),
        }
    }

    pub(crate) fn place_redis(self, server: &RedisServer) {
        if self.pinned && self.all > 2 {
            keep(server.pid(), 2);
        }
    }

    fn server(self, program: &str) -> Command {
        if !self.pinned {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["-c", "1", program]);
        command
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn keep(pid: u32, core: usize) -> bool {
    let mut taskset = Command::new("taskset");
    taskset.args(["-a", "-c", "-p", &core.to_string(), &pid.to_string()]);
    taskset.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Sends a signal with the system's `kill`.
pub(crate) fn signal(pid: u32, signal: &str) {
    let _ =
        Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).stderr(Stdio::null()).status();
}

/// A running contender. Dropping it ends its processes.
pub(crate) struct Server {
    /// The contender's process first, then the processes behind it.
    children: Vec<Child>,
    address: SocketAddr,
    /// The address of the app's own controls, not behind the cache.
    control: SocketAddr,
    dir: Option<PathBuf>,
}

impl Server {
    /// Starts a contender and waits until it answers.
    ///
    /// # Errors
    ///
    /// A text that says what is missing.
    pub(crate) fn start(
        contender: Contender,
        cores: Cores,
        redis: Option<&RedisServer>,
    ) -> Result<Self, String> {
        if contender.store().needs_redis() && redis.is_none() {
            return Err("there is no redis-server".to_owned());
        }
        let url = redis.map(RedisServer::url).unwrap_or_default();
        match contender {
            Contender::Nginx => Self::nginx(cores),
            Contender::Python => Self::python(cores, &url),
            _ => Self::rust(contender, cores, &url),
        }
    }

    fn rust(contender: Contender, cores: Cores, redis: &str) -> Result<Self, String> {
        let address = free_address()?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = cores.server(&program.to_string_lossy());
        command.args(["serve", contender.id(), &address.to_string(), redis]);
        Self::ready(vec![spawn(command)?], address, address, None)
    }

    /// As in nginx's own guide to caching, with open connections to the app and open files.
    fn nginx(cores: Cores) -> Result<Self, String> {
        let origin = Self::rust(Contender::Bare, cores, "")?;
        let address = free_address()?;
        let dir = std::env::temp_dir().join(format!("larder-peers-nginx-{}", address.port()));
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let path = dir.display();
        let conf = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log crit;
events {{ worker_connections 8192; }}
http {{
    access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; open_file_cache max=10000;
    keepalive_timeout 1h; keepalive_requests 1000000000;
    client_body_temp_path {path}/b; proxy_temp_path {path}/p;
    fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
    proxy_cache_path {path}/cache levels=1:2 keys_zone=peers:64m max_size=1g inactive=2h use_temp_path=off;
    upstream app {{ server {origin}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";
            proxy_cache peers; proxy_cache_valid 200 1h;
        }}
    }}
}}
",
            origin = origin.address,
        );
        let file = dir.join("nginx.conf");
        let written = fs::File::create(&file).and_then(|mut file| file.write_all(conf.as_bytes()));
        written.map_err(|error| error.to_string())?;
        let mut command = cores.server("nginx");
        let user = if is_root() { "user root;" } else { "" };
        command.args(["-p", &path.to_string(), "-c", &file.display().to_string(), "-g", user]);
        let nginx = spawn(command)?;
        let control = origin.address;
        let mut children = vec![nginx];
        children.append(&mut origin.into_children());
        Self::ready(children, address, control, Some(dir))
    }

    fn python(cores: Cores, redis: &str) -> Result<Self, String> {
        let python = std::env::var(PYTHON).map_err(|_| "Python isn't installed".to_owned())?;
        let address = free_address()?;
        let mut command = cores.server(&python);
        command
            .args(["-m", "uvicorn", "app:app", "--app-dir", concat!(env!("CARGO_MANIFEST_DIR"), "/python")])
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--log-level", "critical", "--no-access-log", "--timeout-keep-alive", "3600"])
            .env("REDIS_URL", redis)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Self::ready(vec![spawn(command)?], address, address, None)
    }

    fn ready(
        children: Vec<Child>,
        address: SocketAddr,
        control: SocketAddr,
        dir: Option<PathBuf>,
    ) -> Result<Self, String> {
        let mut server = Self { children, address, control, dir };
        for _ in 0..400 {
            if TcpStream::connect(address).is_ok() {
                return Ok(server);
            }
            if let Ok(Some(status)) = server.children[0].try_wait() {
                return Err(format!("it ended at once, with {status}"));
            }
            sleep(Duration::from_millis(25));
        }
        Err("it doesn't listen".to_owned())
    }

    fn into_children(mut self) -> Vec<Child> {
        std::mem::take(&mut self.children)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn control(&self) -> SocketAddr {
        self.control
    }

    /// Returns the processor time of all its processes, or zero if it can't be read.
    pub(crate) fn cpu(&self) -> Duration {
        self.children.iter().map(|child| cpu(child.id())).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Not SIGKILL: nginx stops its workers itself.
            signal(child.id(), "TERM");
            for _ in 0..80 {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    break;
                }
                sleep(Duration::from_millis(25));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Returns the time of a process, its threads and its children in nanoseconds: `/proc/<pid>/stat` counts in hundredths of a
/// second.
fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| {
            let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let own = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or_default();
            let children = read("children");
            let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            Duration::from_nanos(own) + children.map(cpu).sum::<Duration>()
        })
        .sum()
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

fn spawn(mut command: Command) -> Result<Child, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.map_err(|error| format!("{program}: {error}"))
}

fn free_address() -> Result<SocketAddr, String> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map_err(|error| error.to_string())
}

/// Serves a Rust contender until this process is ended, or its parent is gone.
pub(crate) async fn serve(contender: Contender, address: SocketAddr, redis: &str) {
    let parent = parent_id();
    tokio::spawn(async move {
        while parent_id() == parent {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::process::exit(0);
    });
    let app = contender.mount(redis).await.merge(app::control());
    let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a socket"));
    axum::serve(listener, app).await.expect("a server that runs");
}
