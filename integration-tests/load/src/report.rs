//! What was measured: JSON lines as it comes, and a table for people at the end.

use std::{collections::BTreeMap, fmt::Write as _, fs::File, io::Write as _, path::Path};

use crate::{
    failure::{During, Result},
    stats::median,
};

/// One number of one peer.
#[derive(Clone, Debug)]
struct Figure {
    scenario: &'static str,
    case: String,
    name: &'static str,
    unit: &'static str,
    peer: &'static str,
    value: f64,
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    json: Option<File>,
    run: u32,
}

/// Where figures of one scenario, case and peer go.
#[derive(Debug)]
pub(crate) struct Sheet<'a> {
    report: &'a mut Report,
    scenario: &'static str,
    case: String,
    peer: &'static str,
}

impl Report {
    /// An empty report. `json`: a file to write a line for each figure to.
    pub(crate) fn new(json: Option<&Path>) -> Result<Self> {
        let create = |path: &Path| File::create(path).during(&format!("cannot write {}", path.display()));
        Ok(Self { figures: Vec::new(), json: json.map(create).transpose()?, run: 0 })
    }

    /// From here on figures are of this run.
    pub(crate) fn begin(&mut self, run: u32) {
        self.run = run;
    }

    /// Where to put figures.
    pub(crate) fn sheet(
        &mut self,
        scenario: &'static str,
        case: impl Into<String>,
        peer: &'static str,
    ) -> Sheet<'_> {
        Sheet { report: self, scenario, case: case.into(), peer }
    }

    /// The medians over all runs, a row for each figure, with the spread, and with what ours is of each peer's.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<(&'static str, &str, &'static str, &'static str)> = Vec::new();
        let mut peers: Vec<&'static str> = Vec::new();
        let mut values: BTreeMap<(&str, &str, &str, &str), Vec<f64>> = BTreeMap::new();
        for figure in &self.figures {
            let row = (figure.scenario, figure.case.as_str(), figure.name, figure.unit);
            if !rows.contains(&row) {
                rows.push(row);
            }
            if !peers.contains(&figure.peer) {
                peers.push(figure.peer);
            }
            values
                .entry((figure.scenario, &figure.case, figure.name, figure.peer))
                .or_default()
                .push(figure.value);
        }
        let others: Vec<_> = peers.iter().filter(|peer| **peer != OURS).collect();
        let mut table = "| scenario | case | figure |".to_owned();
        let head = peers.iter().map(|peer| format!(" {peer} |"));
        table.extend(head.chain(others.iter().map(|peer| format!(" {OURS} / {peer} |"))));
        table.push_str("\n|---|---|---|");
        table.push_str(&"---|".repeat(peers.len() + others.len()));
        table.push('\n');
        for (scenario, case, name, unit) in rows {
            let of = |peer: &'static str| values.get(&(scenario, case, name, peer)).map(Vec::as_slice);
            // Writing to a string does not fail.
            let _ = write!(table, "| {scenario} | {case} | {name}, {unit} |");
            for peer in &peers {
                let _ = write!(table, " {} |", of(peer).map(spread).unwrap_or_default());
            }
            for peer in &others {
                let ratio = of(OURS).zip(of(peer)).and_then(|(ours, peers)| ratio(ours, peers));
                let _ = write!(
                    table,
                    " {} |",
                    ratio.map(|ratio| format!("{}×", short(ratio))).unwrap_or_default()
                );
            }
            table.push('\n');
        }
        table
    }
}

/// The peer that others are compared with.
const OURS: &str = "ours";

impl Sheet<'_> {
    /// Notes a figure, in the file and for people.
    pub(crate) fn note(&mut self, name: &'static str, unit: &'static str, value: f64) -> Result<()> {
        let Self { report, scenario, case, peer } = self;
        let line = serde_json::json!({
            "run": report.run, "scenario": scenario, "case": case, "peer": peer,
            "figure": name, "unit": unit, "value": value,
        });
        if let Some(json) = &mut report.json {
            writeln!(json, "{line}").during("cannot write the JSON lines")?;
        }
        crate::say(&format!("run {} {scenario} {case} {peer}: {name} {} {unit}", report.run, short(value)));
        report.figures.push(Figure { scenario, case: case.clone(), name, unit, peer, value });
        Ok(())
    }
}

/// The median of each run's ratio would need runs in pairs; the ratio of the medians does not.
fn ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let (ours, theirs) = (median(ours)?, median(theirs)?);
    (theirs > 0.0).then(|| ours / theirs)
}

/// The median, and the least and the most where there are several.
fn spread(values: &[f64]) -> String {
    let middle = median(values).map(short).unwrap_or_default();
    if values.len() < 2 {
        return middle;
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{middle} ({}–{})", short(least), short(most))
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_spreads_and_ratios() {
        let mut report = Report::new(None).expect("no file");
        for (run, ours, etcd) in [(1, 90.0, 30.0), (2, 120.0, 10.0), (3, 100.0, 25.0)] {
            report.begin(run);
            report.sheet("register", "64 callers", "ours").note("rate", "/s", ours).expect("noted");
            report.sheet("register", "64 callers", "etcd").note("rate", "/s", etcd).expect("noted");
        }
        report.sheet("register", "one caller", "ours").note("p50", "µs", 400.0).expect("noted");
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "| scenario | case | figure | ours | etcd | ours / etcd |");
        assert_eq!(
            lines[2],
            "| register | 64 callers | rate, /s | 100 (90.0–120) | 25.0 (10.0–30.0) | 4.00× |"
        );
        assert_eq!(lines[3], "| register | one caller | p50, µs | 400 |  |  |", "nothing to compare with");
    }
}
