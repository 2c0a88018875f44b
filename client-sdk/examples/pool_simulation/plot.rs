//! The plot: demand, services and estimate over time, one panel for each mode, as SVG by hand.

use std::fmt::Write as _;

use crate::simulation::{Look, Mode, Run, Scenario};

const WIDTH: f64 = 900.0;
const PANEL: f64 = 230.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 46.0;
/// The most services that are shown.
const MOST: f64 = 10.0;

/// The plot of these runs of one scenario.
pub fn svg(scenario: &Scenario, runs: &[(Mode, Run)]) -> String {
    let height = TOP + (PANEL + 60.0) * f64::from(u32::try_from(runs.len()).unwrap_or(1));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 30.0
    );
    let key = [("demand", "#999999"), ("services", "#1f5fbf"), ("estimate", "#d2691e")];
    for (nth, (name, colour)) in (0_u32..).zip(key) {
        let x = LEFT + 140.0 * f64::from(nth);
        let _ = writeln!(
            svg,
            "<path d=\"M{x} 20h24\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"24\">{name}</text>",
            x + 30.0
        );
    }
    for (nth, (mode, run)) in (0_u32..).zip(runs) {
        panel(&mut svg, TOP + (PANEL + 60.0) * f64::from(nth), *mode, scenario, run);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, top: f64, mode: Mode, scenario: &Scenario, run: &Run) {
    let bottom = top + PANEL;
    let changes = run.looks.last().map_or(0, |look| look.changes);
    let (title, unit) = match mode {
        Mode::Steady => ("Steady", "the estimate in services"),
        Mode::Classic => ("Classic", "the estimate, a share of polls, ten times as high"),
    };
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}: {changes} services came or went; {unit}</text>",
        top - 6.0
    );
    for services in (0_u32..=10).step_by(2) {
        let y = bottom - PANEL * f64::from(services) / MOST;
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#eeeeee\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{services}</text>",
            LEFT - 8.0,
            y + 4.0
        );
    }
    let end = scenario.end.as_secs_f64();
    for seconds in (0..=scenario.end.as_secs()).step_by(60) {
        let x = LEFT + WIDTH * f64::from(u32::try_from(seconds).unwrap_or(0)) / end;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{seconds} s</text>",
            bottom + 18.0
        );
    }
    let scale = if mode == Mode::Classic { 10.0 } else { 1.0 };
    let services = |look: &Look| f64::from(u32::try_from(look.services).unwrap_or(u32::MAX));
    line(svg, bottom, end, "#999999", run, |look| look.demand);
    line(svg, bottom, end, "#d2691e", run, |look| look.estimate * scale);
    line(svg, bottom, end, "#1f5fbf", run, services);
}

/// A line of steps; only where it moves there is a point.
fn line(svg: &mut String, bottom: f64, end: f64, colour: &str, run: &Run, of: impl Fn(&Look) -> f64) {
    let (mut path, mut last) = (String::new(), f64::NAN);
    for look in &run.looks {
        let y = bottom - PANEL * of(look).min(MOST) / MOST;
        let x = LEFT + WIDTH * look.at.as_secs_f64() / end;
        if last.is_nan() {
            let _ = write!(path, "M{x:.1} {y:.1}");
            last = y;
        } else if (y - last).abs() >= 0.5 {
            let _ = write!(path, "H{x:.1}V{y:.1}");
            last = y;
        }
    }
    let _ = write!(path, "H{:.1}", LEFT + WIDTH);
    let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>");
}
