//! Commands that Redis refuses, because the user may not run them or the server doesn't have them. The error names the command,
//! and a warning is logged once for each command.
//!
//! Missing rights show far from their cause: as a cache that never hits, or as an eviction that is repeated forever. The
//! server's own error doesn't always name the command.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use redis::{Arg, Cmd, ErrorKind, RedisError, ServerErrorKind};

use super::address::Address;
use super::scripts;

/// The description of a named refusal. Its detail begins with the command.
const REFUSED: &str = "Redis refuses a command";

/// The commands for which a warning was logged.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    warned: Mutex<BTreeSet<String>>,
}

impl Refusals {
    /// Logs a warning if a command was refused for the first time.
    pub(super) fn note(&self, address: &Address, error: &RedisError) {
        let Some(command) = command_of(error) else { return };
        // A panic can't leave the set half changed.
        let is_new = self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(command.clone());
        if is_new {
            tracing::warn!(
                redis = %address,
                command,
                %error,
                "Redis refuses a command; the guide's page `redis` says what doesn't work without it"
            );
        }
    }
}

/// Adds the command's name to an error if the command was refused.
pub(super) fn named(cmd: &Cmd, error: RedisError) -> RedisError {
    match refused(cmd, &error) {
        Some(command) => {
            let kind = ErrorKind::Server(ServerErrorKind::NoPerm);
            let reason = error.detail().unwrap_or_default().trim();
            (kind, REFUSED, format!("{command}: {reason}")).into()
        }
        None => error,
    }
}

/// Returns `true` if a [named](named) error is a refusal.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
}

/// Returns the command of a named refusal, or the one that the server's error names.
fn command_of(error: &RedisError) -> Option<String> {
    let detail = error.detail()?;
    if is_refusal(error)
        && let Some((command, _)) = detail.split_once(": ")
    {
        return Some(command.to_owned());
    }
    quoted(detail)
}

/// Returns the name of the command if it was refused.
fn refused(cmd: &Cmd, error: &RedisError) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    let mut args = cmd.args_iter().filter_map(|arg| match arg {
        Arg::Simple(arg) => std::str::from_utf8(arg).ok(),
        _ => None,
    });
    let (name, next) = (args.next()?.to_ascii_uppercase(), args.next());
    let is_script = matches!(&*name, "EVAL" | "EVALSHA");
    let is_unknown = detail.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("unknown "));
    if is_refusal(error) || (is_unknown && !is_script) {
        let has_subcommands = matches!(&*name, "CLIENT" | "CLUSTER");
        let subcommand = next.filter(|_| has_subcommands).map(str::to_ascii_uppercase);
        return Some(subcommand.map(|next| format!("{name} {next}")).unwrap_or(name));
    }
    let of_user = ["can't run this command", "ACL failure", "Unknown Redis command"];
    if is_script && of_user.iter().any(|words| detail.contains(words)) {
        return quoted(detail).or_else(|| in_script(next?, detail)).or(Some(name));
    }
    None
}

/// Returns the command in `… no permissions to run the 'client|tracking' command`.
fn quoted(detail: &str) -> Option<String> {
    let (command, _) = detail.split_once(" to run the '")?.1.split_once('\'')?;
    Some(command.replace('|', " ").to_ascii_uppercase())
}

/// Returns the command on the failed line of a script. Redis 6 and 7.0 name only the line.
fn in_script(code_or_hash: &str, detail: &str) -> Option<String> {
    let code = scripts::code(code_or_hash).unwrap_or(code_or_hash);
    let mut lines = detail.split("user_script:").skip(1).filter_map(|rest| {
        let number = rest.trim_start();
        number[..number.find(|character: char| !character.is_ascii_digit())?].parse::<usize>().ok()
    });
    // An error that was raised again names several lines, and one of them calls a command.
    lines.find_map(|number| called_in(code.lines().nth(number.checked_sub(1)?)?).next()).map(str::to_owned)
}

/// Returns the commands that a line of a script calls. A bare `pcall` doesn't count, because its error doesn't end the script.
pub(super) fn called_in(line: &str) -> impl Iterator<Item = &str> {
    let calls = ["redis.call('", "tolerant('"];
    calls
        .into_iter()
        .flat_map(|call| line.split(call).skip(1))
        .filter_map(|rest| Some(rest.split_once('\'')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reply: &str) -> RedisError {
        redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn refusal_names_its_command() {
        let script = "local a = 1\nif redis.pcall('GET', KEYS[1]) then redis.call('PERSIST', KEYS[1]) end";
        let scan = redis::cmd("SCAN").arg(0).take();
        let track = redis::cmd("CLIENT").arg("TRACKING").arg("ON").take();
        let eval = redis::cmd("EVAL").arg(script).arg(0).take();
        for (cmd, reply, expected) in [
            (&scan, "NOPERM User app has no permissions to run the 'scan' command", Some("SCAN")),
            (
                &scan,
                "NOPERM this user has no permissions to run the 'scan' command or its subcommand",
                Some("SCAN"),
            ),
            (&scan, "NOPERM No permissions to access a key", Some("SCAN")),
            (&scan, "ERR unknown command 'scan', with args beginning with: '0' ", Some("SCAN")),
            (&scan, "ERR invalid cursor", None),
            (&scan, "WRONGTYPE Operation against a key holding the wrong kind of value", None),
            (
                &track,
                "NOPERM this user has no permissions to run the 'client' command",
                Some("CLIENT TRACKING"),
            ),
            (
                &track,
                "ERR Unknown subcommand or wrong number of arguments for 'TRACKING'",
                Some("CLIENT TRACKING"),
            ),
            (&eval, "NOPERM User app has no permissions to run the 'eval' command", Some("EVAL")),
            (
                &eval,
                "ERR ACL failure in script: User app has no permissions to run the 'persist' command script: ab, \
                 on @user_script:2.",
                Some("PERSIST"),
            ),
            (
                &eval,
                "ERR The user executing the script can't run this command or subcommand script: ab, on @user_script:2.",
                Some("PERSIST"),
            ),
            (
                &eval,
                "ERR Error running script (call to f_ab): @user_script:2: @user_script: 2: The user executing the script \
                 can't run this command or subcommand",
                Some("PERSIST"),
            ),
            (
                &eval,
                "ERR Error running script (call to f_ab): @user_script:1: user_script:2: @user_script: 1: The user executing the \
                 script can't run this command or subcommand",
                Some("PERSIST"),
            ),
            (
                &eval,
                "ERR user_script:2: The user executing the script can't run this command or subcommand script: ab, \
                 on @user_script:1.",
                Some("PERSIST"),
            ),
            (&eval, "ERR Error running script (call to f_ab): @user_script:2: out of memory", None),
        ] {
            let named = named(cmd, error(reply));
            assert_eq!(command_of(&named).as_deref(), expected, "{reply}");
            if expected.is_none() {
                assert_eq!(named, error(reply));
            }
        }
    }
}
