//! Prints the tables of `docs/benchmarks.md`, as measured on this machine.
//!
//! `cargo run --release --features pingora`, in this folder; some minutes. Without the feature, pingora is left out. With any of
//! `picks`, `changes` and `building` as arguments, only these.

use std::{sync::Arc, time::Duration};

use benchmarks::{
    changing::{self, Changing, while_changing},
    fixture::{Feed, SIZES, instances},
    measure::{fastest, mean},
    ours, peers,
    subject::Subject,
};
use client_sdk::runtime::Runtime;

/// Runs of which the fastest counts.
const ROUNDS: usize = 15;

/// Names of rows, and what each has at each size. `None`: not measured.
#[derive(Default)]
struct Table(Vec<(String, Vec<Option<f64>>)>);

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let runtime = Runtime::tokio();
    // It never yields, so that tower's stream would soon be told to, and then everything else.
    tokio::spawn(tokio::task::unconstrained(async move { all(&runtime) })).await.expect("it runs through");
}

fn all(runtime: &Runtime) {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|it| it == part);
    for threads in [1, 2] {
        if wanted("picks") {
            let floor = fastest(&[ours::floor()], threads, ROUNDS)[0];
            println!("## Picks on {}, nanoseconds\n", threads_of(threads));
            println!(
                "One atomic addition{}: {floor:.1}\n",
                if threads == 1 { "" } else { " to one counter" }
            );
            picks(threads, runtime);
        }
    }
    for threads in [1, 2] {
        if wanted("changes") {
            println!(
                "## While ten changes arrive a second, on {}, nanoseconds on the average\n",
                threads_of(threads)
            );
            under_changes(threads, runtime);
        }
    }
    if wanted("building") {
        println!("## Taking in a change of one instance, microseconds\n");
        building(runtime);
    }
}

fn threads_of(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

fn picks(threads: usize, runtime: &Runtime) {
    let (mut table, mut ratios) = (Table::default(), Table::default());
    for (column, size) in SIZES.into_iter().enumerate() {
        let feed = Arc::new(Feed::new(instances(size)));
        let [one_key, one_key_got] = ours::hashes_of_one_key(&feed, size, runtime);
        let groups = [
            ("", ours::pickers(size, runtime)),
            (", made and ended", ours::ended(size, runtime)),
            (", by `Handle`", ours::handles(&feed, runtime)),
            (", by `Handle`", one_key),
            (", by `Handle`, filters and shapers set", ours::shaped(&feed, size, runtime)),
            (", by `get_picker`", ours::get_pickers(size, runtime)),
            (", by `get_picker`", one_key_got),
            ("", vec![peers::volo_random(size).0, peers::volo_hash(size).0, peers::tower(size)]),
            ("", peers::pingora(size)),
        ];
        let named = |(suffix, subjects): (&str, Vec<Subject>)| {
            let name = move |subject: &Subject| format!("{}{suffix}", subject.name);
            subjects.into_iter().map(|subject| (name(&subject), subject)).collect::<Vec<_>>()
        };
        let (names, subjects): (Vec<_>, Vec<_>) =
            groups.into_iter().flat_map(named).filter(|(_, it)| threads == 1 || it.is_shared).unzip();
        let results = fastest(&subjects, threads, ROUNDS);
        for (name, result) in names.iter().zip(&results) {
            table.set(name, column, *result);
        }
        let of = |name: &str| names.iter().position(|it| it == name).map(|at| results[at]);
        for policy in ["round robin", "weighted random", "Maglev", "ring hash", "least request", "peak EWMA"]
        {
            let (bare, set) =
                (format!("{policy}, by `Handle`"), format!("{policy}, by `Handle`, filters and shapers set"));
            if let (Some(bare), Some(set)) = (of(&bare), of(&set)) {
                ratios.set(
                    &format!("{policy}, by `Handle`: filters and shapers set ÷ none set"),
                    column,
                    set / bare,
                );
            }
        }
        for (peer, own) in [
            ("volo: `WeightedRandomBalance`", "weighted random"),
            ("volo: `ConsistentHashBalance`, one key", "Maglev, one key"),
            ("volo: `ConsistentHashBalance`, one key", "ring hash, one key"),
        ] {
            for face in ["`Handle`", "`get_picker`"] {
                if let (Some(peer_takes), Some(own_takes)) = (of(peer), of(&format!("{own}, by {face}"))) {
                    ratios.set(&format!("{peer} ÷ {own}, by {face}"), column, peer_takes / own_takes);
                }
            }
        }
    }
    table.print(1);
    ratios.print(1);
}

fn under_changes(threads: usize, runtime: &Runtime) {
    let during = Duration::from_millis(400);
    let mut table = Table::default();
    for (column, size) in SIZES.into_iter().enumerate() {
        for Changing { subject, change } in changing::all(size, runtime) {
            if threads > 1 && !subject.is_shared {
                continue;
            }
            let quiet = mean(&subject, threads, during);
            let changing = while_changing(change, || mean(&subject, threads, during));
            table.set(&format!("{}, quiet", subject.name), column, quiet);
            table.set(&format!("{}, changing", subject.name), column, changing);
        }
    }
    table.print(1);
}

fn building(runtime: &Runtime) {
    let mut table = Table::default();
    for (column, size) in SIZES.into_iter().enumerate() {
        let rounds = if size > 1_000 { 5 } else { ROUNDS };
        for (name, build, change) in ours::building(size, rounds, runtime) {
            table.set(&format!("{name}, the picker alone"), column, build / 1_000.0);
            table.set(&format!("{name}, by `rebalance`"), column, change / 1_000.0);
        }
        for (name, change) in peers::volo_changes(size, rounds) {
            table.set(&format!("{name}, by `rebalance`"), column, change / 1_000.0);
        }
        for (name, change) in changing::others(size, rounds) {
            table.set(name, column, change / 1_000.0);
        }
    }
    table.print(0);
}

impl Table {
    fn set(&mut self, name: &str, column: usize, value: f64) {
        let at = self.0.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.0.push((name.to_owned(), vec![None; SIZES.len()]));
            self.0.len() - 1
        });
        self.0[at].1[column] = Some(value);
    }

    fn print(&self, decimals: usize) {
        println!("| instances | 10 | 100 | 1,000 | 10,000 |\n|---|--:|--:|--:|--:|");
        for (name, values) in &self.0 {
            print!("| {name} |");
            for value in values {
                match value {
                    Some(value) if *value >= 100.0 => print!(" {value:.0} |"),
                    Some(value) => print!(" {value:.decimals$} |"),
                    None => print!(" – |"),
                }
            }
            println!();
        }
        println!();
    }
}
