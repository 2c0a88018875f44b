//! What the field got wrong: one test a line, named after what it guards.

use std::collections::BTreeSet;

use super::support::*;
use crate::core::*;

#[test]
fn a_deregistered_instance_that_came_back_from_an_old_lease() {
    // consul #1188
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    sim.run(&deregister(None, &[(0, 1, 0)])).unwrap();
    for _ in 0..10 {
        sim.advance(300);
        let told = Renewal::Partial(vec![(key(0), id(1), Loss::Deregistered)]);
        assert_eq!(
            sim.renew(1),
            told,
            "the lease lives on to say so, and is not unknown: that means register again"
        );
        assert!(sim.ids(0).is_empty());
    }
    sim.restart();
    assert!(matches!(sim.renew(1), Renewal::Partial(_)));
    assert!(sim.ids(0).is_empty());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    assert_eq!(sim.ids(0), ["i1"], "unless the registrant means it");
}

#[test]
fn an_operators_offline_flag_overwritten_by_a_reconnecting_instance() {
    // nacos #10975
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    sim.run(&override_with(0, 1, Some(down()))).unwrap();
    let is_down = |sim: &Sim| assert_eq!(sim.at(0, 1).unwrap().status(), Status::Down);
    is_down(&sim);
    sim.run(&register_with(1, registrant(1, 1), 1_000, [(0, 1, 5)])).unwrap();
    is_down(&sim);
    sim.run(&register(2, registrant(1, 2), &[(0, 1)])).unwrap();
    is_down(&sim);
    sim.advance(5_000);
    assert!(sim.ids(0).is_empty());
    sim.restart();
    sim.run(&register(3, registrant(1, 3), &[(0, 1)])).unwrap();
    is_down(&sim);
    sim.run(&override_with(0, 1, None)).unwrap();
    assert_eq!(sim.at(0, 1).unwrap().status(), Status::Up);
}

#[test]
fn all_leases_expiring_together_after_a_restart() {
    // etcd #8097
    let mut sim = Sim::new(Settings::default());
    for n in 0..200 {
        sim.run(&register_with(n, registrant(n, 1), 15_000, [(0, n, 1)])).unwrap();
    }
    sim.pass(3_600_000);
    sim.restart();
    let deadlines: Vec<_> = (0..200).map(|n| sim.core.leases().deadline(&lease(n)).unwrap()).collect();
    let (from, to) = (sim.now.mono + 15_000, sim.now.mono + 18_000);
    assert!(deadlines.iter().all(|deadline| (from..=to).contains(deadline)));
    let seconds: Vec<_> =
        (0..3).map(|s| deadlines.iter().filter(|at| (**at - from) / 1_000 == s).count()).collect();
    assert!(seconds.iter().all(|count| *count > 30), "spread over all of it: {seconds:?}");
    assert_eq!(sim.ids(0).len(), 200);
    sim.restart();
    let again: Vec<_> = (0..200).map(|n| sim.core.leases().deadline(&lease(n)).unwrap()).collect();
    assert_eq!(deadlines, again, "the same data gives the same deadlines");
}

#[test]
fn a_hundred_thousand_expiries_go_in_few_records() {
    let mut core = Core::new(Settings { guard: false, ..Settings::default() });
    let now = Now { mono: 0, wall: 0 };
    let spec = spec(1);
    for n in 0..1_000u128 {
        let instances = (0..100).map(|i| (key((n % 10) as u8), format!("{n}-{i}").into(), spec.clone()));
        let lease = LeaseId(n.to_be_bytes());
        let registrant = Registrant { uid: format!("u{n}").into(), generation: 1 };
        let command = Command::Register { lease, registrant, ttl: 1_000, instances: instances.collect() };
        let record = core.decide(now, &command).unwrap().record;
        core.evolve(now, &Committed { revision: core.state().revision() + 1, record });
    }
    assert_eq!(core.state().instance_count(), 100_000);
    let now = Now { mono: 1_000, wall: 1_000 };
    let mut leases = BTreeSet::new();
    let mut records = 0;
    while let Some(proposal) = core.tick(now, 5_000) {
        let removed =
            proposal.record.events.iter().filter(|event| matches!(event, Event::Removed { .. })).count();
        assert!(removed <= 5_000);
        for event in &proposal.record.events {
            if let Event::LeaseEnded { lease } = event {
                assert!(leases.insert(*lease));
            }
        }
        records += 1;
        core.evolve(now, &Committed { revision: core.state().revision() + 1, record: proposal.record });
    }
    assert_eq!((records, leases.len(), core.state().instance_count()), (20, 1_000, 0));
}

#[test]
fn renewals_of_many_leases_write_a_deadline_and_nothing_else() {
    // etcd #11886: what a renewal costs must not depend on how many there are.
    let mut sim = Sim::new(Settings::default());
    for n in 0..100 {
        sim.run(&register(n, registrant(n, 1), &[(0, n)])).unwrap();
    }
    let (state, records) = (sim.core.state().clone(), sim.log.len());
    for _ in 0..50 {
        sim.advance(333);
        for n in 0..100 {
            assert_eq!(sim.renew(n), Renewal::Renewed);
        }
    }
    assert_eq!((sim.core.state(), sim.log.len()), (&state, records));
}
