//! A picture of a scenario: latency and requests to bad servers, second by second.
#![allow(clippy::cast_precision_loss)] // places in a picture

use std::{fmt::Write, time::Duration};

use crate::{record::Second, report::Results};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 250.0;
const PANEL: f64 = 220.0;
const GAP: f64 = 50.0;
/// Latencies from a millisecond to ten seconds, by their logarithm.
const DECADES: f64 = 4.0;
/// Told apart by most people who see colours differently (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// The picture, as SVG.
#[must_use]
pub fn svg(results: &Results) -> String {
    let length = results.scenario.length.as_secs_f64().max(1.0);
    let runs: Vec<_> = results.results.iter().map(|(it, record)| (it.name(), record.seconds())).collect();
    let panels = if results.scenario.bad.is_some() { 2.0 } else { 1.0 };
    let height = GAP + panels * (PANEL + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(results.scenario.name),
    );
    let latency = |second: &Second| {
        let millis = second.p99.max(Duration::from_millis(1)).as_secs_f64() * 1e3;
        millis.log10() / DECADES
    };
    let labels: Vec<_> =
        [(0.0, "1 ms"), (0.25, "10 ms"), (0.5, "100 ms"), (0.75, "1 s"), (1.0, "10 s")].into();
    panel(&mut svg, GAP, "p99 of the requests that arrived in a second", &labels, length);
    lines(&mut svg, GAP, &runs, length, latency);
    if panels > 1.0 {
        let top = GAP + PANEL + GAP;
        let labels: Vec<_> = [(0.0, "0 %"), (0.5, "25 %"), (1.0, "50 %")].into();
        panel(&mut svg, top, "requests to bad servers, of all that were sent in a second", &labels, length);
        lines(&mut svg, top, &runs, length, |second| (second.to_bad * 2.0).min(1.0));
    }
    for (number, (name, _)) in runs.iter().enumerate() {
        let y = GAP + 14.0 + number as f64 * 18.0;
        let (x, colour) = (WIDTH - RIGHT + 15.0, COLOURS[number % COLOURS.len()]);
        let name = escape(name);
        put(
            &mut svg,
            format_args!(
                "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{name}</text>",
                y - 6.0,
                x + 20.0,
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, top: f64, title: &str, labels: &[(f64, &str)], length: f64) {
    let right = WIDTH - RIGHT;
    put(svg, format_args!("<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">{title}</text>", top - 6.0));
    for (place, label) in labels {
        let y = top + PANEL * (1.0 - place);
        put(
            svg,
            format_args!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                y + 4.0,
            ),
        );
    }
    for tenth in 0..=4 {
        let (x, at) = (LEFT + (right - LEFT) * f64::from(tenth) / 4.0, length * f64::from(tenth) / 4.0);
        put(
            svg,
            format_args!(
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{at:.0} s</text>",
                top + PANEL + 16.0,
            ),
        );
    }
}

fn lines(
    svg: &mut String,
    top: f64,
    runs: &[(String, Vec<Second>)],
    length: f64,
    height: impl Fn(&Second) -> f64,
) {
    for (number, (_, seconds)) in runs.iter().enumerate() {
        let points = seconds.iter().map(|second| {
            let x = LEFT + (WIDTH - RIGHT - LEFT) * (second.second as f64 + 0.5) / length;
            let y = top + PANEL * (1.0 - height(second).clamp(0.0, 1.0));
            format!("{x:.1},{y:.1}")
        });
        let (points, colour) = (points.collect::<Vec<_>>().join(" "), COLOURS[number % COLOURS.len()]);
        put(
            svg,
            format_args!(
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"
            ),
        );
    }
}

fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(svg, "{what}").expect("a string takes it");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
