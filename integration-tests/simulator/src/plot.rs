//! A picture of a scenario: latency and requests to bad servers, second by second.
#![allow(clippy::cast_precision_loss)] // places in a picture

use std::{fmt::Write, time::Duration};

use crate::{
    contender::{Contender, Policy},
    record::{Record, Second},
    report::Results,
};

const WIDTH: f64 = 1010.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 400.0;
const PANEL: f64 = 220.0;
const GAP: f64 = 50.0;
/// Latencies from ten milliseconds to ten seconds, by their logarithm.
const DECADES: f64 = 3.0;
/// How a contender is drawn.
struct Line {
    name: String,
    /// Of its policy: told apart by most people who see colours differently (Okabe and Ito).
    colour: &'static str,
    /// By what stands around the policy.
    dashes: &'static str,
    seconds: Vec<Second>,
}

impl Line {
    fn of(contender: Contender, record: &Record) -> Self {
        let colour = match contender.policy {
            Policy::RoundRobin | Policy::RingHash => "#0072b2",
            Policy::WeightedRandom | Policy::BoundedRingHash => "#e69f00",
            Policy::LeastRequest | Policy::Maglev => "#009e73",
            Policy::PeakEwma | Policy::BoundedMaglev => "#d55e00",
        };
        let dashes = match contender {
            Contender { zones: true, .. } | Contender { slow_start: true, .. } => "7 3",
            Contender { guarded: true, .. } => "none",
            _ => "2 3",
        };
        Self { name: contender.name(), colour, dashes, seconds: record.seconds() }
    }
}

/// The picture, as SVG.
#[must_use]
pub fn svg(results: &Results) -> String {
    let length = results.scenario.length.as_secs_f64().max(1.0);
    let runs: Vec<_> = results.results.iter().map(|(it, record)| Line::of(*it, record)).collect();
    let panels = if results.scenario.bad.is_some() { 2.0 } else { 1.0 };
    let height = GAP + panels * (PANEL + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(results.scenario.name),
    );
    let latency = |second: &Second| {
        let millis = second.p99.max(Duration::from_millis(10)).as_secs_f64() * 1e3;
        (millis.log10() - 1.0) / DECADES
    };
    let labels = [(0.0, "10 ms"), (1.0 / DECADES, "100 ms"), (2.0 / DECADES, "1 s"), (1.0, "10 s")];
    panel(&mut svg, GAP, "p99 of the requests that arrived in a second", &labels, length);
    lines(&mut svg, GAP, &runs, length, latency);
    if panels > 1.0 {
        let top = GAP + PANEL + GAP;
        let labels = [(0.0, "0 %"), (0.5, "25 %"), (1.0, "50 %")];
        panel(&mut svg, top, "requests to bad servers, of all that were sent in a second", &labels, length);
        lines(&mut svg, top, &runs, length, |second| (second.to_bad * 2.0).min(1.0));
    }
    for (number, Line { name, colour, dashes, .. }) in runs.iter().enumerate() {
        let y = GAP + 14.0 + number as f64 * 18.0;
        let (x, name) = (WIDTH - RIGHT + 15.0, escape(name));
        let (to, text, middle) = (x + 28.0, x + 36.0, y - 4.0);
        put(
            &mut svg,
            format_args!(
                "<line x1=\"{x}\" x2=\"{to}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"{colour}\" stroke-width=\"2\" \
                 stroke-dasharray=\"{dashes}\"/><text x=\"{text}\" y=\"{y}\">{name}</text>"
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

fn lines(svg: &mut String, top: f64, runs: &[Line], length: f64, height: impl Fn(&Second) -> f64) {
    for Line { colour, dashes, seconds, .. } in runs {
        let points = seconds.iter().map(|second| {
            let x = LEFT + (WIDTH - RIGHT - LEFT) * (second.second as f64 + 0.5) / length;
            let y = top + PANEL * (1.0 - height(second).clamp(0.0, 1.0));
            format!("{x:.1},{y:.1}")
        });
        let points = points.collect::<Vec<_>>().join(" ");
        put(
            svg,
            format_args!(
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" \
                 stroke-dasharray=\"{dashes}\"/>"
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
