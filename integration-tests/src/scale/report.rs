//! The table of all cases, and what the unit costs of a small one say of the large one.

use std::fmt::Write as _;

use super::{
    meter::Figure,
    sizes::{Case, Sizes},
};

pub(super) const RULES: &str = "memory an instance: the rules";
pub(super) const PUBLISHED: &str = "memory an instance: what is published";
pub(super) const WATCHER: &str = "memory a watcher";
pub(super) const DECIDED: &str = "a change: decided";
pub(super) const APPLIED: &str = "a change: applied";
pub(super) const ENCODED: &str = "a change: its instance encoded, published";
pub(super) const DELTA: &str = "a change: its delta encoded, once";
pub(super) const MARKED: &str = "a change for a watcher: marked and woken";
pub(super) const TAKEN: &str = "a change for a watcher: taken by its cursor";
pub(super) const RENEWAL: &str = "a renewal";
pub(super) const DEADLINE: &str = "a renewal: its share of looking for what is due";
pub(super) const RENEWALS: &str = "all together: renewals";
pub(super) const CHANGES: &str = "all together: changes";
pub(super) const EVENTS: &str = "all together: deliveries";
pub(super) const SECOND: &str = "all together: a second of it takes";
pub(super) const IN_ALL: &str = "memory in all, simulated clients included";

/// What one case gave.
pub type Column = (Case, Vec<Figure>);

/// A row for each figure, a column for each case.
pub fn table(columns: &[Column]) -> String {
    let mut table = "| |".to_owned();
    for ((name, _), _) in columns {
        // Writing to a string does not fail.
        let _ = write!(table, " {name} |");
    }
    table.push_str("\n|---|");
    table.push_str(&"--:|".repeat(columns.len()));
    table.push('\n');
    let Some((_, rows)) = columns.first() else { return table };
    for Figure { name, unit, .. } in rows {
        let head = if unit.is_empty() { name.clone() } else { format!("{name}, {unit}") };
        let _ = write!(table, "| {head} |");
        for (_, figures) in columns {
            let value = find(figures, name);
            // What has no unit is counted.
            let value = value.map(|it| if unit.is_empty() { format!("{it:.0}") } else { short(it) });
            let _ = write!(table, " {} |", value.unwrap_or_default());
        }
        table.push('\n');
    }
    table
}

/// What the unit costs of the second case make of the first one's numbers, beside what was measured of it.
pub fn confirmed(columns: &[Column]) -> String {
    let [((_, whole), measured), ((tenth, _), units), ..] = columns else { return String::new() };
    let Some((memory, second)) = worked_out(*whole, units, measured) else { return String::new() };
    let sum = |names: &[&str]| names.iter().filter_map(|name| find(measured, name)).sum::<f64>();
    let held =
        f64::from(whole.all()) * sum(&[RULES, PUBLISHED]) + f64::from(whole.watchers) * sum(&[WATCHER]);
    let line = |what: &str, worked_out: f64, measured: f64, unit: &str| {
        let (worked_out, measured, off) = (short(worked_out), short(measured), measured / worked_out);
        format!("| {what} | {worked_out} {unit} | {measured} {unit} | {off:.2}× |\n")
    };
    format!("| the whole | by the unit costs of {tenth} | measured | |\n|---|--:|--:|--:|\n")
        + &line("memory of instances and watchers", memory, held / 1_048_576.0, "MiB")
        + &line("a second of everything together, processor", second, sum(&[SECOND]), "ms")
}

/// Memory in MiB, and milliseconds of processor time a second.
fn worked_out(whole: Sizes, units: &[Figure], measured: &[Figure]) -> Option<(f64, f64)> {
    let unit = |name| find(units, name);
    let rate = |name| find(measured, name);
    let memory = f64::from(whole.all()) * (unit(RULES)? + unit(PUBLISHED)?)
        + f64::from(whole.watchers) * unit(WATCHER)?;
    let change = unit(DECIDED)? + unit(APPLIED)? + unit(ENCODED)? + unit(DELTA)?;
    let event = unit(MARKED)? + unit(TAKEN)?;
    let renewal = unit(RENEWAL)? + unit(DEADLINE)?;
    let micros = rate(RENEWALS)? * renewal + rate(CHANGES)? * change + rate(EVENTS)? * event;
    Some((memory / 1_048_576.0, micros / 1_000.0))
}

fn find(figures: &[Figure], name: &str) -> Option<f64> {
    figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
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
    fn the_arithmetic_is_the_sum_of_counts_times_costs() {
        let whole = Sizes::new(1_000, 100, 10, 10).expect("within bounds");
        let figure =
            |(name, value): (&str, f64)| Figure { name: name.to_owned(), unit: String::new(), value };
        let units =
            [(RULES, 1_048.576), (PUBLISHED, 0.0), (WATCHER, 10_485.76), (DECIDED, 1.0), (APPLIED, 2.0)];
        let more =
            [(ENCODED, 3.0), (DELTA, 4.0), (MARKED, 0.5), (TAKEN, 1.5), (RENEWAL, 0.25), (DEADLINE, 0.75)];
        let units: Vec<Figure> = units.into_iter().chain(more).map(figure).collect();
        let rates = [(RENEWALS, 1_000.0), (CHANGES, 100.0), (EVENTS, 500.0), (SECOND, 3.3)];
        let measured: Vec<Figure> = rates.into_iter().map(figure).chain(units[..3].to_vec()).collect();
        let (memory, second) = worked_out(whole, &units, &measured).expect("all is there");
        assert!((memory - 2.0).abs() < 1e-9 && (second - 3.0).abs() < 1e-9, "{memory} {second}");
        let text = confirmed(&[(("the whole", whole), measured), (("a tenth", whole), units)]);
        assert!(text.contains("| 3.00 ms | 3.30 ms | 1.10× |"), "{text}");
    }
}
