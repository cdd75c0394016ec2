//! Plots as SVG, on a card with its own background, so that they can be read on light and dark pages.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 24.0;

const STYLE: &str = "<style>
.card{fill:#ffffff;stroke:#d0d7de}.text{fill:#1f2328}.quiet{fill:#59636e}.grid{stroke:#d8dee4}.one{stroke:#59636e}
.s0{fill:#2563eb;stroke:#2563eb}.s1{fill:#0d9488;stroke:#0d9488}.s2{fill:#b45309;stroke:#b45309}.error{stroke:#1f2328}
.line{fill:none;stroke-width:2}
@media (prefers-color-scheme:dark){.card{fill:#161b22;stroke:#30363d}.text{fill:#e6edf3}.quiet{fill:#9198a1}
.grid{stroke:#30363d}.one{stroke:#9198a1}.s0{fill:#60a5fa;stroke:#60a5fa}.s1{fill:#2dd4bf;stroke:#2dd4bf}
.s2{fill:#f59e0b;stroke:#f59e0b}.error{stroke:#e6edf3}}
text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:12px}
.title{font-size:13.5px;font-weight:600}.head{font-size:13px;font-weight:600}.ours{font-weight:700}
</style>";

/// Bars below a heading, each with a value for every series.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) series: Vec<String>,
    pub(crate) bars: Vec<Bar>,
}

/// The values under one label.
pub(crate) struct Bar {
    pub(crate) label: String,
    /// `true` for a label in bold.
    pub(crate) ours: bool,
    /// A value and its interval for each series, if there is one.
    pub(crate) values: Vec<Option<(f64, f64, f64)>>,
}

/// Draws bars from the left, with a line at 1.
pub(crate) fn bars(title: &str, panels: &[Panel]) -> String {
    const LABELS: f64 = 230.0;
    const THICK: f64 = 13.0;
    let (left, right) = (MARGIN + LABELS, WIDTH - MARGIN - 36.0);
    let values = panels.iter().flat_map(|panel| &panel.bars).flat_map(|bar| bar.values.iter().flatten());
    let most = values.map(|(_, _, high)| *high).fold(1.0, f64::max);
    let most = (most * 5.0).ceil() / 5.0;
    let x = |value: f64| left + (right - left) * value / most;
    let mut svg = String::new();
    let mut y = MARGIN + 12.0;
    text(&mut svg, MARGIN, y, "text title", "start", title);
    for panel in panels {
        y += 30.0;
        text(&mut svg, MARGIN, y, "text head", "start", &panel.title);
        let mut legend = left;
        for (index, name) in panel.series.iter().enumerate() {
            let _ = writeln!(
                svg,
                r#"<rect class="s{index}" x="{legend}" y="{}" width="10" height="10" rx="2"/>"#,
                y - 10.0
            );
            text(&mut svg, legend + 16.0, y, "quiet", "start", name);
            legend += 110.0;
        }
        y += 10.0;
        let top = y;
        let group = THICK * panel.series.len() as f64;
        let pitch = group + 9.0;
        let bottom = top + pitch * panel.bars.len() as f64;
        for tick in 0..=(most * 5.0).round() as u32 {
            let value = f64::from(tick) / 5.0;
            let class = if tick == 5 { "one" } else { "grid" };
            line(&mut svg, class, (x(value), top), (x(value), bottom + 4.0));
            text(&mut svg, x(value), bottom + 18.0, "quiet", "middle", &format!("{value:.1}"));
        }
        for bar in &panel.bars {
            let class = if bar.ours { "text ours" } else { "text" };
            text(&mut svg, left - 8.0, y + pitch / 2.0 + 4.0, class, "end", &bar.label);
            for (index, value) in bar.values.iter().enumerate() {
                let Some((median, low, high)) = *value else { continue };
                let at = y + 4.5 + THICK * index as f64;
                let _ = writeln!(
                    svg,
                    r#"<rect class="s{index}" x="{left}" y="{at:.1}" width="{:.1}" height="{}" style="stroke:none"/>"#,
                    (x(median) - left).max(0.5),
                    THICK - 1.0
                );
                let middle = at + THICK / 2.0 - 0.5;
                line(&mut svg, "error", (x(low), middle), (x(high), middle));
                let digits = if median < 0.1 { 3 } else { 2 };
                text(
                    &mut svg,
                    x(high.max(median)) + 5.0,
                    at + THICK - 2.0,
                    "quiet",
                    "start",
                    &format!("{median:.digits$}"),
                );
            }
            y += pitch;
        }
        y += 30.0;
    }
    card(&svg, y + 4.0, title)
}

/// A chart with lines.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: &'static str,
    /// `true` for a logarithmic axis.
    pub(crate) logarithmic: bool,
    /// A name, and points.
    pub(crate) series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Draws charts side by side, two in a row, each with an axis from zero.
pub(crate) fn charts(title: &str, charts: &[Chart]) -> String {
    const HEIGHT: f64 = 190.0;
    let width = (WIDTH - 3.0 * MARGIN) / 2.0;
    let mut svg = String::new();
    text(&mut svg, MARGIN, MARGIN + 12.0, "text title", "start", title);
    for (index, chart) in charts.iter().enumerate() {
        let left = MARGIN + (index % 2) as f64 * (width + MARGIN);
        let top = MARGIN + 40.0 + (index / 2) as f64 * (HEIGHT + 70.0);
        draw(&mut svg, chart, (left, top), (width, HEIGHT));
    }
    let rows = charts.len().div_ceil(2) as f64;
    card(&svg, MARGIN + 40.0 + rows * (HEIGHT + 70.0) - 12.0, title)
}

fn draw(svg: &mut String, chart: &Chart, (left, top): (f64, f64), (width, height): (f64, f64)) {
    text(svg, left, top, "text head", "start", &chart.title);
    let points = || chart.series.iter().flat_map(|(_, points)| points);
    let scale = |value: f64| if chart.logarithmic { value.ln() } else { value };
    let (least, most) =
        points().map(|(x, _)| scale(*x)).fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let highest = round_up(points().map(|(_, y)| *y).fold(0.0, f64::max));
    let (left, right) = (left + 48.0, left + width - 8.0);
    let (top, bottom) = (top + 30.0, top + height);
    let x = |value: f64| left + (right - left) * (scale(value) - least) / (most - least).max(f64::EPSILON);
    let y = |value: f64| bottom - (bottom - top) * value / highest;
    for tick in 0..=4 {
        let value = highest * f64::from(tick) / 4.0;
        line(svg, "grid", (left, y(value)), (right, y(value)));
        text(svg, left - 6.0, y(value) + 4.0, "quiet", "end", &short(value));
    }
    let mut legend = left;
    for (index, (name, points)) in chart.series.iter().enumerate() {
        let path: Vec<_> = points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
        let _ = writeln!(
            svg,
            r#"<polyline class="line s{index}" style="fill:none" points="{}"/>"#,
            path.join(" ")
        );
        for (px, py) in points {
            let _ =
                writeln!(svg, r#"<circle class="s{index}" cx="{:.1}" cy="{:.1}" r="2.5"/>"#, x(*px), y(*py));
        }
        let _ = writeln!(
            svg,
            r#"<rect class="s{index}" x="{legend:.1}" y="{:.1}" width="10" height="3"/>"#,
            top - 17.0
        );
        text(svg, legend + 15.0, top - 12.0, "quiet", "start", name);
        legend += 30.0 + 7.0 * name.chars().count() as f64;
    }
    // Labels where there is room for them.
    let mut free = f64::MIN;
    let mut values: Vec<f64> = points().map(|(x, _)| *x).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    for value in values {
        if x(value) > free {
            text(svg, x(value), bottom + 16.0, "quiet", "middle", &short(value));
            free = x(value) + 34.0;
        }
    }
    text(svg, (left + right) / 2.0, bottom + 34.0, "quiet", "middle", chart.x);
}

/// Returns the next of 1, 2, 4 and 8 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(f64::MIN_POSITIVE).log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= value)
        .unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 && v % 100.0 == 0.0 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, anchor: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(svg, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{what}</text>"#);
}

fn line(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        r#"<line class="{class}" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"/>"#,
        from.0, from.1, to.0, to.1
    );
}

fn card(inside: &str, height: f64, title: &str) -> String {
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0}" viewBox="0 0 {WIDTH} {height:.0}" role="img">
<title>{title}</title>
{STYLE}
<rect class="card" x="0.5" y="0.5" width="{}" height="{:.0}" rx="8"/>
{inside}</svg>
"#,
        WIDTH - 1.0,
        height - 1.0
    )
}
