//! What was measured: JSON lines as it comes, and a table for people at the end.

use std::{collections::BTreeMap, fmt::Write as _, fs::File, io::Write as _, path::Path};

use crate::{
    failure::{During, Failure, Result},
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
    run: u32,
    value: f64,
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    json: Option<File>,
    run: u32,
    left_out: Vec<String>,
    broken: bool,
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
        Ok(Self {
            figures: Vec::new(),
            json: json.map(create).transpose()?,
            run: 0,
            left_out: Vec::new(),
            broken: false,
        })
    }

    /// Says what will not be in the table, and why.
    pub(crate) fn leave_out(&mut self, what: String) {
        crate::say(&format!("left out: {what}"));
        self.left_out.push(what);
    }

    /// Says what broke: there may be figures of it in other runs. The rest goes on.
    pub(crate) fn broke(&mut self, what: &str, failure: &Failure) {
        self.leave_out(format!("run {} {what}: {failure}", self.run));
        self.broken = true;
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

    /// The medians over all runs, a row for each figure, with the spread; the median of what ours is of each peer's in the same
    /// run; and what is left out.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<(&'static str, &str, &'static str, &'static str)> = Vec::new();
        let mut peers: Vec<&'static str> = Vec::new();
        let mut values: BTreeMap<(&str, &str, &str, &str), ByRun> = BTreeMap::new();
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
                .insert(figure.run, figure.value);
        }
        let others: Vec<_> = peers.iter().filter(|peer| **peer != OURS).collect();
        let mut table = "| scenario | case | figure |".to_owned();
        let head = peers.iter().map(|peer| format!(" {peer} |"));
        table.extend(head.chain(others.iter().map(|peer| format!(" {OURS} / {peer} |"))));
        table.push_str("\n|---|---|---|");
        table.push_str(&"---|".repeat(peers.len() + others.len()));
        table.push('\n');
        for (scenario, case, name, unit) in rows {
            let of = |peer: &'static str| values.get(&(scenario, case, name, peer));
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
        for what in &self.left_out {
            let _ = write!(table, "\nLeft out: {what}\n");
        }
        table
    }

    /// Whether something broke.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }
}

/// The values of one figure of one peer, by the run.
type ByRun = BTreeMap<u32, f64>;

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
        let run = report.run;
        report.figures.push(Figure { scenario, case: case.clone(), name, unit, peer, run, value });
        Ok(())
    }
}

/// The median of the ratios, each within one run.
fn ratio(ours: &ByRun, theirs: &ByRun) -> Option<f64> {
    let pairs = ours.iter().filter_map(|(run, ours)| Some((ours, *theirs.get(run)?)));
    let ratios: Vec<f64> =
        pairs.filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs).collect();
    median(&ratios)
}

/// The median, and the least and the most where there are several.
fn spread(values: &ByRun) -> String {
    let values: Vec<f64> = values.values().copied().collect();
    let middle = median(&values).map(short).unwrap_or_default();
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
            lines[2], "| register | 64 callers | rate, /s | 100 (90.0–120) | 25.0 (10.0–30.0) | 4.00× |",
            "the ratio is the median of 3, 12 and 4"
        );
        assert_eq!(lines[3], "| register | one caller | p50, µs | 400 |  |  |", "nothing to compare with");
    }

    #[test]
    fn what_broke_is_said_below_the_table_and_its_run_is_in_no_ratio() {
        let mut report = Report::new(None).expect("no file");
        report.leave_out("etcd-3.7: its program is not there".to_owned());
        assert!(!report.is_broken(), "nobody asked for it");
        for (run, ours, etcd) in [(1, 90.0, Some(30.0)), (2, 200.0, None)] {
            report.begin(run);
            report.sheet("register", "64 callers", "ours").note("rate", "/s", ours).expect("noted");
            match etcd {
                Some(etcd) => {
                    report.sheet("register", "64 callers", "etcd").note("rate", "/s", etcd).expect("noted");
                }
                None => report.broke("register etcd", &Failure("it ended".to_owned())),
            }
        }
        let table = report.table();
        assert!(table.contains("| 145 (90.0–200) | 30.0 | 3.00× |"), "{table}");
        assert!(table.ends_with("there\n\nLeft out: run 2 register etcd: it ended\n"), "{table}");
        assert!(report.is_broken());
    }
}
