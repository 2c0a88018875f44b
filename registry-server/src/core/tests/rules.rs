//! The rules one by one.

use super::support::*;
use crate::core::*;

/// Six instances of service 0 under leases of their own, all expired at once: three are held.
fn half_held() -> Sim {
    let mut sim = Sim::new(Settings::default());
    for n in 0..6 {
        sim.run(&register(n, registrant(n, 1), &[(0, n)])).unwrap();
    }
    sim.advance(1_000);
    assert_eq!(sim.held(0), ["i3", "i4", "i5"]);
    sim
}

/// One lease with six instances of service 0, expired: three are lost, three held.
fn one_lease_half_held() -> Sim {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)])).unwrap();
    sim.advance(1_000);
    assert_eq!(sim.ids(0), ["i3", "i4", "i5"]);
    assert_eq!(sim.held(0), ["i3", "i4", "i5"]);
    sim
}

#[test]
fn repeating_a_registration_is_no_revision_but_renews() {
    let mut sim = Sim::new(Settings::default());
    let command = register(1, registrant(1, 1), &[(0, 1), (1, 2)]);
    assert_eq!(sim.run(&command).unwrap().len(), 3);
    sim.advance(900);
    assert_eq!(sim.run(&command).unwrap(), []);
    sim.advance(999);
    assert_eq!(sim.ids(0), ["i1"]);
    sim.advance(1);
    assert!(sim.ids(0).is_empty());
    assert_eq!(sim.log.len(), 2);
}

#[test]
fn a_registration_says_only_what_differs_and_drops_nothing() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2), (0, 3)])).unwrap();
    let created = sim.at(0, 2).unwrap().create_revision;
    let events = sim.run(&register_with(1, registrant(1, 1), 1_000, [(0, 1, 1), (0, 2, 7)])).unwrap();
    assert_eq!(events, [Event::Registered { key: key(0), id: id(2), spec: spec(7), lease: lease(1) }]);
    assert_eq!(sim.ids(0), ["i1", "i2", "i3"]);
    let updated = sim.at(0, 2).unwrap();
    assert_eq!(updated.create_revision, created, "the same lease is the same incarnation");
    assert!(updated.mod_revision > created);
}

#[test]
fn a_new_lease_is_a_new_incarnation_and_one_update() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    let before = sim.at(0, 1).unwrap();
    sim.run(&register(2, registrant(2, 1), &[(0, 1)])).unwrap();
    let after = sim.at(0, 1).unwrap();
    assert!(after.create_revision > before.create_revision);
    assert_eq!(sim.changes[1].items, [ItemChange { id: id(1), before: Some(before), after: Some(after) }]);
    assert_eq!(sim.renew(1), Renewal::Superseded);
    assert_eq!(sim.renew(2), Renewal::Renewed);
    // The old lease is not renewed by that answer, and leaves without a change to any service.
    let changes = sim.changes.len();
    sim.advance(999);
    sim.renew(2);
    sim.advance(1);
    assert_eq!(sim.core.state().lease(&lease(1)), None);
    assert_eq!(sim.changes.len(), changes);
}

#[test]
fn a_lower_generation_is_refused_while_a_higher_one_has_a_lease() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2)])).unwrap();
    sim.run(&register(2, registrant(1, 2), &[(0, 1)])).unwrap();
    assert_eq!(sim.renew(1), Renewal::Superseded, "although it still carries i2");
    assert!(matches!(sim.run(&register(1, registrant(1, 1), &[(0, 1)])), Err(Rejection::Superseded { .. })));
    assert!(matches!(sim.run(&register(3, registrant(1, 1), &[(0, 3)])), Err(Rejection::Superseded { .. })));
    sim.run(&deregister(Some(2), &[])).unwrap();
    sim.run(&register(3, registrant(1, 1), &[(0, 3)])).unwrap();
}

#[test]
fn a_lease_belongs_to_its_registrant() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    assert!(matches!(sim.run(&register(1, registrant(2, 9), &[(0, 2)])), Err(Rejection::Superseded { .. })));
}

#[test]
fn a_late_duplicate_takes_nothing_back_from_the_same_registrants_newer_lease() {
    let mut sim = Sim::new(Settings::default());
    let first = register(1, registrant(1, 1), &[(0, 1)]);
    sim.run(&first).unwrap();
    sim.run(&register(2, registrant(1, 1), &[(0, 1)])).unwrap();
    assert!(matches!(sim.run(&first), Err(Rejection::Superseded { .. })));
    assert_eq!(sim.at(0, 1).unwrap().lease, lease(2));
    // Another registrant's later word counts.
    sim.run(&register(3, registrant(3, 1), &[(0, 1)])).unwrap();
    sim.run(&register(2, registrant(1, 1), &[(0, 1)])).unwrap();
    assert_eq!(sim.at(0, 1).unwrap().lease, lease(2));
}

#[test]
fn the_end_of_an_old_lease_leaves_newer_incarnations_alone() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2)])).unwrap();
    sim.run(&register_with(2, registrant(2, 1), 5_000, [(0, 1, 1)])).unwrap();
    sim.run(&deregister(Some(1), &[])).unwrap();
    assert_eq!(sim.ids(0), ["i1"]);
    sim.run(&register(3, registrant(3, 1), &[(0, 2)])).unwrap();
    sim.run(&register_with(4, registrant(4, 1), 5_000, [(0, 2, 1)])).unwrap();
    sim.advance(2_000);
    assert_eq!(sim.ids(0), ["i1", "i2"], "lease 3 ran out, and carried nothing any more");
}

#[test]
fn deregistration_checks_incarnation_and_lease_and_is_idempotent() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2)])).unwrap();
    let actual = sim.at(0, 1).unwrap().create_revision;
    let wrong = sim.run(&deregister(None, &[(0, 2, 0), (0, 1, actual + 1)]));
    assert_eq!(wrong, Err(Rejection::IncarnationMismatch { key: key(0), id: id(1), actual }));
    let other = sim.run(&deregister(Some(2), &[(0, 1, 0)]));
    assert_eq!(other, Err(Rejection::LeaseMismatch { key: key(0), id: id(1) }));
    assert_eq!(sim.ids(0), ["i1", "i2"], "a refused command changes nothing");
    assert_eq!(sim.run(&deregister(None, &[(0, 9, 5), (7, 1, 0)])), Ok(vec![]));
    assert_eq!(sim.run(&deregister(Some(9), &[])), Ok(vec![]));
    assert_eq!(sim.run(&deregister(None, &[(0, 1, actual), (0, 1, 0)])).unwrap().len(), 1);
}

#[test]
fn what_a_lease_gives_up_itself_is_not_a_loss_and_its_last_ends_it() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2)])).unwrap();
    sim.run(&deregister(Some(1), &[(0, 1, 0)])).unwrap();
    assert_eq!(sim.renew(1), Renewal::Renewed);
    sim.run(&deregister(Some(1), &[(0, 2, 0)])).unwrap();
    assert_eq!(sim.renew(1), Renewal::Unknown);
    assert_eq!(sim.core.next_deadline(), None);
}

#[test]
fn a_loss_is_told_until_it_is_registered_again() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2)])).unwrap();
    sim.run(&register(2, registrant(2, 1), &[(0, 2)])).unwrap();
    let told = Renewal::Partial(vec![(key(0), id(2), Loss::TakenOver)]);
    assert_eq!((sim.renew(1), sim.renew(1)), (told.clone(), told));
    sim.run(&register(1, registrant(1, 1), &[(0, 2)])).unwrap();
    assert_eq!(sim.renew(1), Renewal::Renewed);
}

#[test]
fn a_changed_ttl_counts_from_its_commit() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register_with(1, registrant(1, 1), 60_000, [(0, 1, 1)])).unwrap();
    sim.run(&register_with(1, registrant(1, 1), 2_000, [(0, 1, 1)])).unwrap();
    assert_eq!(sim.core.next_deadline(), Some(sim.now.mono + 2_000));
    sim.advance(2_000);
    assert!(sim.ids(0).is_empty());
}

#[test]
fn an_override_of_an_unregistered_instance_creates_no_service() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&override_with(0, 1, Some(down()))).unwrap();
    assert_eq!(sim.run(&override_with(0, 1, Some(down()))), Ok(vec![]));
    assert_eq!((sim.core.state().service(&key(0)), sim.changes.len()), (None, 0));
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    let over = sim.at(0, 1).unwrap();
    assert_eq!((over.status(), over.over.as_ref().unwrap().revision), (Status::Down, 1));
}

#[test]
fn overrides_are_bounded() {
    let mut sim = Sim::new(Settings { max_overrides: 1, ..Settings::default() });
    sim.run(&override_with(0, 1, Some(down()))).unwrap();
    assert_eq!(sim.run(&override_with(0, 2, Some(down()))), Err(Rejection::TooManyOverrides { limit: 1 }));
    sim.run(&override_with(0, 1, None)).unwrap();
    sim.run(&override_with(0, 2, Some(down()))).unwrap();
}

#[test]
fn an_override_ends_at_its_expiry_even_if_the_wall_clock_jumps() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register_with(1, registrant(1, 1), 60_000, [(0, 1, 1)])).unwrap();
    let set = OverrideSpec { weight: Some(0), status: None, expires_in: Some(5_000) };
    sim.run(&override_with(0, 1, Some(set))).unwrap();
    sim.now.wall -= 900_000;
    sim.advance(4_999);
    assert_eq!(sim.at(0, 1).unwrap().weight(), 0);
    sim.advance(1);
    assert_eq!(sim.at(0, 1).unwrap().weight(), 1);
    assert_eq!(sim.log.last().unwrap().record.cause, Cause::OverrideExpire);
}

#[test]
fn held_instances_go_after_the_hold_time() {
    let mut sim = half_held();
    sim.advance(299_999);
    assert_eq!(sim.ids(0), ["i3", "i4", "i5"]);
    sim.advance(1);
    assert!(sim.ids(0).is_empty());
    assert_eq!(sim.core.state().lease_count(), 0);
    assert_eq!(sim.log.last().unwrap().record.cause, Cause::HoldExpire);
}

#[test]
fn a_held_instance_says_why() {
    let sim = half_held();
    let held = sim.at(0, 4).unwrap().held.clone().unwrap();
    assert_eq!((held.since, held.until), (sim.now.wall, sim.now.wall + 300_000));
    assert!(
        held.reason.contains("of the 6 instances") && held.reason.contains("removed 3"),
        "{}",
        held.reason
    );
}

#[test]
fn a_renewal_releases_what_is_held() {
    let mut sim = half_held();
    assert_eq!(sim.renew(4), Renewal::RenewedHeld);
    assert_eq!(sim.held(0), ["i3", "i5"]);
    assert_eq!(sim.core.leases().deadline(&lease(4)), Some(sim.now.mono + 1_000));
    assert_eq!(sim.renew(0), Renewal::Unknown, "what was removed is not resurrected");
}

#[test]
fn a_hold_does_not_end_under_a_renewal_whose_release_waits() {
    let mut sim = half_held();
    sim.advance(299_999);
    assert_eq!(sim.core.renew(sim.now, &lease(4)), Renewal::RenewedHeld);
    sim.advance(1);
    assert_eq!(sim.ids(0), ["i4"]);
    sim.run(&Command::RenewHeld { lease: lease(4) }).unwrap();
    sim.advance(999);
    assert_eq!((sim.ids(0), sim.held(0).len()), (vec!["i4".into()], 0));
}

#[test]
fn the_end_of_a_hold_in_flight_answers_unknown() {
    let mut sim = half_held();
    sim.pass(300_000);
    let proposal = sim.core.tick(sim.now, 1_000).unwrap();
    assert_eq!(sim.core.renew(sim.now, &lease(4)), Renewal::Unknown);
    sim.core.abandon(&proposal);
    assert_eq!(sim.renew(4), Renewal::RenewedHeld);
    sim.tick(1_000);
    assert_eq!(sim.ids(0), ["i4"]);
}

#[test]
fn a_registration_under_a_held_lease_releases_all_of_it() {
    let mut sim = one_lease_half_held();
    let events = sim.run(&register(1, registrant(1, 1), &[(0, 3), (0, 0)])).unwrap();
    assert_eq!(events.len(), 4, "{events:?}");
    assert_eq!((sim.ids(0).len(), sim.held(0).len()), (4, 0));
    let lost = vec![(key(0), id(1), Loss::Expired), (key(0), id(2), Loss::Expired)];
    assert_eq!(sim.renew(1), Renewal::Partial(lost));
    sim.advance(999);
    assert_eq!(sim.ids(0).len(), 4);
}

#[test]
fn a_release_gives_the_lease_a_full_ttl() {
    let mut sim = half_held();
    assert_eq!(sim.run(&resolve(0, &[9], false)), Err(Rejection::NotHeld { key: key(0), id: id(9) }));
    sim.run(&resolve(0, &[3], false)).unwrap();
    assert_eq!(sim.held(0), ["i4", "i5"]);
    sim.advance(999);
    assert_eq!(sim.ids(0).len(), 3);
    sim.advance(1);
    // The window of the first expiry is over, and three are below the guard's minimum.
    assert_eq!(sim.ids(0), ["i4", "i5"]);
    assert_eq!(sim.run(&resolve(0, &[], false)).unwrap().len(), 2);
    assert_eq!(sim.run(&resolve(0, &[], false)), Ok(vec![]));
}

#[test]
fn an_eviction_ends_the_lease_with_its_last_instance() {
    let mut sim = one_lease_half_held();
    sim.run(&resolve(0, &[3], true)).unwrap();
    assert_eq!(sim.ids(0), ["i4", "i5"]);
    assert!(sim.core.state().is_dormant(&lease(1)));
    sim.run(&resolve(0, &[], true)).unwrap();
    assert_eq!((sim.ids(0).len(), sim.core.state().lease_count()), (0, 0));
    assert_eq!(sim.renew(1), Renewal::Unknown);
}

#[test]
fn the_last_held_instance_taken_over_leaves_a_lease_that_ends() {
    let mut sim = half_held();
    sim.run(&register_with(9, registrant(9, 1), 60_000, [(0, 4, 1)])).unwrap();
    assert_eq!(sim.held(0), ["i3", "i5"]);
    assert_eq!(sim.renew(4), Renewal::Superseded);
    sim.advance(1_000);
    assert_eq!(sim.core.state().lease(&lease(4)), None);
}

#[test]
fn a_partly_released_lease_keeps_its_other_holds() {
    let mut sim = one_lease_half_held();
    let until = sim.at(0, 4).unwrap().held.clone();
    sim.run(&resolve(0, &[3], false)).unwrap();
    sim.advance(1_000);
    // i3 ran out again and, being one of three, went. The others wait on.
    assert_eq!((sim.ids(0), sim.at(0, 4).unwrap().held.clone()), (vec!["i4".into(), "i5".into()], until));
    assert!(sim.core.state().is_dormant(&lease(1)));
    sim.advance(299_000);
    assert_eq!((sim.ids(0).len(), sim.core.state().lease_count()), (0, 0));
    assert_eq!(sim.core.next_deadline(), None);
}

#[test]
fn deregistered_instances_lower_the_guards_base() {
    let mut sim = Sim::new(Settings::default());
    for n in 0..10 {
        let ttl = if n == 0 { 1_000 } else { 1_500 };
        sim.run(&register_with(n, registrant(n, 1), ttl, [(0, n, 1)])).unwrap();
    }
    sim.advance(1_000);
    sim.run(&deregister(None, &[(0, 1, 0), (0, 2, 0)])).unwrap();
    sim.advance(500);
    // Of 8, four may go; i0 was the first.
    assert_eq!((sim.ids(0).len(), sim.held(0).len()), (4, 4));
}

#[test]
fn small_services_and_a_guard_switched_off_hold_nothing() {
    for (settings, instances) in
        [(Settings::default(), 3), (Settings { guard: false, ..Settings::default() }, 9)]
    {
        let mut sim = Sim::new(settings);
        for n in 0..instances {
            sim.run(&register(n, registrant(n, 1), &[(0, n)])).unwrap();
        }
        sim.advance(1_000);
        assert!(sim.ids(0).is_empty());
    }
}

#[test]
fn a_restart_keeps_holds_and_gives_their_registrants_a_ttl() {
    let mut sim = half_held();
    let held = sim.at(0, 3).unwrap().held.clone();
    sim.pass(299_500);
    sim.restart();
    assert_eq!(sim.at(0, 3).unwrap().held, held);
    sim.advance(999);
    assert_eq!(sim.ids(0).len(), 3);
    sim.advance(1);
    assert!(sim.ids(0).is_empty());
}

#[test]
fn an_expiry_in_flight_is_not_due_again_and_cannot_be_renewed() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    sim.pass(1_000);
    let proposal = sim.core.tick(sim.now, 10).unwrap();
    assert_eq!((sim.core.tick(sim.now, 10), sim.core.next_deadline()), (None, None));
    assert_eq!(sim.core.renew(sim.now, &lease(1)), Renewal::Unknown);
    sim.core.abandon(&proposal);
    assert_eq!(sim.core.next_deadline(), Some(sim.now.mono));
    assert_eq!(sim.renew(1), Renewal::Renewed);
    assert_eq!(sim.core.tick(sim.now, 10), None);
    sim.advance(1_000);
    assert!(sim.ids(0).is_empty());
}

#[test]
fn an_abandoned_expiry_gives_the_guard_its_share_back() {
    let mut sim = Sim::new(Settings::default());
    for n in 0..6 {
        sim.run(&register(n, registrant(n, 1), &[(0, n)])).unwrap();
    }
    sim.pass(1_000);
    let proposal = sim.core.tick(sim.now, 1_000).unwrap();
    sim.core.abandon(&proposal);
    assert_eq!(sim.core.tick(sim.now, 1_000).unwrap(), proposal);
}

#[test]
fn a_lease_is_never_split() {
    let mut sim = Sim::new(Settings { guard: false, ..Settings::default() });
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2), (0, 3)])).unwrap();
    sim.run(&register(2, registrant(1, 1), &[(0, 4), (0, 5)])).unwrap();
    sim.run(&register(3, registrant(1, 1), &[(0, 6), (0, 7)])).unwrap();
    sim.pass(1_000);
    let sizes: Vec<_> =
        std::iter::from_fn(|| sim.core.tick(sim.now, 4).map(|it| it.record.events.len())).collect();
    assert_eq!(sizes, [4, 6], "three and the end of their lease; two leases of two and their ends");
}

#[test]
fn only_time_beyond_the_tolerance_is_a_stall() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1)])).unwrap();
    let due = sim.core.next_deadline().unwrap();
    sim.pass(1_500);
    assert_eq!(sim.core.wake(sim.now, due), 0);
    // Overdue but awake: no stall.
    sim.pass(400);
    assert_eq!(sim.core.wake(sim.now, due), 0);
    sim.pass(501);
    assert_eq!(sim.core.wake(sim.now, due), 501);
    assert_eq!(sim.core.leases().deadline(&lease(1)), Some(due + 501));
}

#[test]
fn an_emptied_service_is_remembered_and_the_oldest_forgotten() {
    let mut sim = Sim::new(Settings { remembered_services: 2, ..Settings::default() });
    for n in 0..3 {
        sim.run(&register(n, registrant(n, 1), &[(n, 1)])).unwrap();
    }
    for n in 0..3 {
        sim.run(&deregister(Some(n), &[])).unwrap();
    }
    let removal = sim.changes[3].revision;
    let state = sim.core.state();
    assert_eq!((state.service_count(), state.forgotten_through()), (2, removal));
    assert!(state.service(&key(0)).is_none());
    assert_eq!(state.service(&key(1)).unwrap().last_change, sim.changes[4].revision);
    sim.run(&register(0, registrant(0, 1), &[(0, 1)])).unwrap();
    assert_eq!(sim.changes.last().unwrap().previous, removal);
    sim.run(&register(1, registrant(1, 1), &[(1, 1)])).unwrap();
    assert_eq!(sim.changes.last().unwrap().previous, sim.changes[4].revision);
}

#[test]
fn several_events_on_one_instance_are_one_net_change() {
    let mut sim = Sim::new(Settings::default());
    sim.run(&register(1, registrant(1, 1), &[(0, 1), (0, 2)])).unwrap();
    let before = sim.at(0, 1).unwrap();
    let held = Held { since: 1, until: 2, reason: "".into() };
    let record = Record {
        wall: 5,
        cause: Cause::Register,
        actor: "".into(),
        events: vec![
            Event::Held { key: key(0), id: id(1), held: held.clone() },
            Event::Released { key: key(0), id: id(1) },
            Event::Removed { key: key(0), id: id(2), loss: None },
            Event::Registered { key: key(0), id: id(3), spec: spec(1), lease: lease(1) },
            Event::Removed { key: key(0), id: id(3), loss: None },
            Event::Registered { key: key(5), id: id(3), spec: spec(1), lease: lease(1) },
            Event::Removed { key: key(5), id: id(3), loss: None },
        ],
    };
    let changes = sim.commit(Proposal { record, touches: vec![] });
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].items.iter().map(|item| &*item.id).collect::<Vec<_>>(), ["i2"]);
    assert_eq!(sim.at(0, 1).unwrap(), before);
    assert!(sim.core.state().service(&key(5)).is_none());
}

#[test]
fn a_proposal_names_all_that_it_rests_on() {
    let mut sim = Sim::new(Settings::default());
    let command = register(1, registrant(1, 1), &[(0, 1)]);
    let expected =
        [Touched::Lease(lease(1)), Touched::Registrant("u1".into()), Touched::Instance(key(0), id(1))];
    assert_eq!(sim.core.decide(sim.now, &command).unwrap().touches, expected);
    sim.run(&command).unwrap();
    assert_eq!(sim.core.decide(sim.now, &command).unwrap().touches, expected, "though it changes nothing");
    let other = sim.core.decide(sim.now, &register(2, registrant(2, 1), &[(0, 1)])).unwrap();
    assert!(other.touches.contains(&Touched::Lease(lease(1))), "the lease that loses the instance");
    let by_name = sim.core.decide(sim.now, &deregister(None, &[(0, 1, 0), (0, 9, 0)])).unwrap();
    assert_eq!(
        by_name.touches,
        [Touched::Lease(lease(1)), Touched::Instance(key(0), id(1)), Touched::Instance(key(0), id(9))]
    );
    sim.pass(1_000);
    let expiry = sim.core.tick(sim.now, 10).unwrap();
    assert_eq!(expiry.touches, [Touched::Lease(lease(1)), Touched::Instance(key(0), id(1))]);
}

#[test]
fn a_hold_does_not_end_in_the_servers_own_sleep() {
    let mut sim = half_held();
    let due = sim.now.mono + 250;
    sim.pass(10 * 300_000);
    assert!(sim.core.wake(sim.now, due) > 0);
    assert_eq!(sim.tick(100), 0, "nobody could renew meanwhile");
    sim.advance(999);
    assert_eq!(sim.held(0), ["i3", "i4", "i5"], "there is a TTL to come back in, as after a restart");
    sim.advance(1);
    assert!(sim.ids(0).is_empty());
}

#[test]
fn names_are_kept_once() {
    let mut sim = Sim::new(Settings::default());
    for n in 0..3 {
        sim.run(&register(n, registrant(n, 1), &[(0, n)])).unwrap();
    }
    // Further words about it, and another lease, bring copies along.
    sim.run(&register_with(1, registrant(1, 1), 1_000, [(0, 1, 7)])).unwrap();
    sim.run(&register(9, registrant(9, 1), &[(0, 2)])).unwrap();
    let state = sim.core.state();
    let (key, service) = state.services_after(None).next().unwrap();
    assert_eq!(service.instances.len(), 3);
    for instance in service.instances.values() {
        let carried = &state.lease(&instance.lease).unwrap().instances;
        let (named, id) = carried.iter().next().unwrap();
        assert!(std::sync::Arc::ptr_eq(id, &instance.id), "{id}");
        assert!(std::sync::Arc::ptr_eq(&named.namespace, &key.namespace), "{id}");
        assert!(std::sync::Arc::ptr_eq(&named.service, &key.service), "{id}");
    }
}

#[test]
fn l5_what_is_about_to_leave_is_not_counted_when_a_new_window_opens() {
    let mut sim = Sim::new(Settings::default());
    for n in 1..=8 {
        sim.run(&register(n, registrant(n, 1), &[(0, n)])).unwrap();
    }
    sim.pass(1_000);
    let first = sim.core.tick(sim.now, 4).unwrap();
    let leaves = |proposal: &Proposal| {
        proposal.record.events.iter().filter(|event| matches!(event, Event::Removed { .. })).count()
    };
    assert_eq!(leaves(&first), 4, "half of eight");
    // Not committed yet when the window is over.
    sim.pass(1_000);
    let second = sim.core.tick(sim.now, 8).unwrap();
    assert_eq!(leaves(&second), 2, "half of the four that are left");
    sim.commit(first);
    sim.commit(second);
    assert_eq!((sim.ids(0).len(), sim.held(0).len()), (2, 2));
}

#[test]
fn of_leases_due_together_those_of_one_service_go_together() {
    let mut sim = Sim::new(Settings { guard: false, ..Settings::default() });
    for n in 0..30 {
        sim.run(&register(n, registrant(n, 1), &[(n % 3, n)])).unwrap();
    }
    sim.pass(1_000);
    for service in 0..3 {
        let proposal = sim.core.tick(sim.now, 10).unwrap();
        for event in &proposal.record.events {
            assert!(!matches!(event, Event::Removed { key: of, .. } if *of != key(service)), "{event:?}");
        }
        assert_eq!(sim.commit(proposal).len(), 1);
    }
    assert_eq!(sim.core.tick(sim.now, 10), None);
}
