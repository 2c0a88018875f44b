//! Tables, and the runs that fill them.

use std::{fmt::Write, time::Duration};

use crate::{
    contender::{Contender, Policy},
    record::Record,
    run::run,
    scenario::{self, Scenario},
};

/// A scenario, and what came of each contender in it.
#[derive(Debug)]
pub struct Results {
    /// The scenario.
    pub scenario: Scenario,
    /// Its contenders.
    pub results: Vec<(Contender, Record)>,
}

/// Every scenario of at least this length with the contenders that it is about.
#[must_use]
pub fn all(length: Duration, seed: u64) -> Vec<Results> {
    let all = scenario::all(length).into_iter().map(|scenario| {
        let contenders = contenders(&scenario);
        let results = contenders.into_iter().map(|it| (it, run(&scenario, it, seed))).collect();
        Results { scenario, results }
    });
    all.collect()
}

/// Who runs in a scenario.
fn contenders(scenario: &Scenario) -> Vec<Contender> {
    use Policy::{
        BoundedMaglev, BoundedRingHash, LeastRequest, Maglev, PeakEwma, RingHash, RoundRobin, WeightedRandom,
    };
    let slow = |policy| Contender { slow_start: true, ..Contender::plain(policy) };
    let near = |contender| Contender { zones: true, ..contender };
    if scenario.hot > 0.0 {
        return [RingHash, BoundedRingHash, Maglev, BoundedMaglev].map(Contender::plain).to_vec();
    }
    if scenario.registered < scenario.servers {
        let all = [RoundRobin, LeastRequest, PeakEwma];
        return all.into_iter().flat_map(|policy| [Contender::plain(policy), slow(policy)]).collect();
    }
    let plain = [RoundRobin, WeightedRandom, LeastRequest, PeakEwma].map(Contender::plain);
    let guarded = [RoundRobin, LeastRequest, PeakEwma].map(Contender::guarded);
    let mut all = [plain.as_slice(), &guarded].concat();
    if scenario.bad.as_ref().is_some_and(|(bad, _)| bad.len() > 1) {
        all.extend(guarded.map(near));
    }
    all
}

/// One table of all.
#[must_use]
pub fn table(all: &[Results]) -> String {
    let mut table = String::from(
        "| fleet | policy | p50, ms | p99, ms | p99.9, ms | failed | of | max ÷ mean | to bad ones |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for Results { scenario, results } in all {
        for (contender, record) in results {
            let millis = |share| record.quantile(share).as_secs_f64() * 1e3;
            let to_bad = record.to_bad().map_or("–".to_owned(), |share| format!("{:.2} %", share * 1e2));
            let (p50, p99, p999) = (millis(0.5), millis(0.99), millis(0.999));
            let (failed, calls, skew) = (record.failed(), record.calls(), record.max_to_mean());
            let line = format_args!(
                "| {} | {} | {p50:.0} | {p99:.0} | {p999:.0} | {failed} | {calls} | {skew:.2} | {to_bad} |",
                scenario.name,
                contender.name(),
            );
            writeln!(table, "{line}").expect("a string takes it");
        }
    }
    table
}
