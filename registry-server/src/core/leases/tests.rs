//! What becomes of deadlines, and in which order what is due goes.

use super::{LeaseClock, OUTDATED, Trail};
use crate::core::LeaseId;

fn next_due(clock: &mut LeaseClock, now: u64) -> Option<LeaseId> {
    clock.upcoming(now, 1).pop()
}

#[test]
fn leases_that_ended_leave_no_more_behind_than_there_are() {
    const ALIVE: u64 = 100;
    let id = |n: u64| LeaseId(u128::from(n).to_be_bytes());
    let mut clock = LeaseClock::default();
    // The first stays, and stays in front: nothing behind it goes because it comes to the front.
    clock.grant(id(0), 1, || 0);
    for n in 1..20_000 {
        clock.grant(id(n), 1_000 + n, || 0);
        if let Some(old) = n.checked_sub(ALIVE).filter(|old| *old > 0) {
            clock.remove(&id(old));
        }
        assert_eq!(clock.next(), Some(1));
        let alive = usize::try_from(ALIVE + 1).expect("small");
        assert!(clock.queue.len() <= 2 * (alive + OUTDATED), "{} in the queue", clock.queue.len());
    }
    clock.remove(&id(0));
    assert_eq!(clock.next(), Some(1_000 + 20_000 - ALIVE), "the earliest of those that are left");
    (1..20_000).for_each(|n| clock.remove(&id(n)));
    assert_eq!(clock.next(), None);
}

#[test]
fn what_is_taken_because_it_is_due_is_renewed_like_any_other_until_it_goes() {
    let id = |n: u8| LeaseId([n; 16]);
    let mut clock = LeaseClock::default();
    (1..=6).for_each(|n| clock.grant(id(n), u64::from(n), || 0));
    assert_eq!(clock.upcoming(5, 10).len(), 5);
    assert_eq!(clock.next(), Some(1), "what is only looked at is still due");
    clock.renew(&id(1), 20);
    clock.grant(id(2), 30, || 0);
    clock.remove(&id(3));
    clock.suspend(&id(4), || 0);
    assert_eq!(next_due(&mut clock, 6), Some(id(5)));
    clock.begin(&id(5));
    assert_eq!((clock.next(), next_due(&mut clock, 6)), (Some(6), Some(id(6))));
    clock.shift(10);
    assert_eq!((clock.next(), next_due(&mut clock, 15)), (Some(16), None), "a stall counts for them, too");
    for (n, deadline) in [(6, 16), (1, 30), (2, 40)] {
        assert_eq!((clock.deadline(&id(n)), next_due(&mut clock, deadline - 1)), (Some(deadline), None));
        assert_eq!(next_due(&mut clock, deadline), Some(id(n)));
        clock.begin(&id(n));
    }
    assert_eq!((clock.next(), next_due(&mut clock, 100)), (None, None));
}

#[test]
fn a_deadline_may_be_as_far_away_as_one_likes() {
    let id = LeaseId([1; 16]);
    let mut clock = LeaseClock::default();
    clock.grant(id, 10, || 0);
    for deadline in [11, 1 << 31, 1 << 32, (1 << 32) + 5, 1 << 40, u64::MAX - 1] {
        clock.renew(&id, deadline);
        assert_eq!((clock.deadline(&id), next_due(&mut clock, deadline - 1)), (Some(deadline), None));
        assert_eq!(clock.next(), Some(deadline), "where it stands was corrected");
    }
    clock.grant(id, 5, || 0);
    clock.grant(id, 1 << 33, || 0);
    assert_eq!((clock.deadline(&id), next_due(&mut clock, (1 << 33) - 1)), (Some(1 << 33), None));
    assert_eq!(next_due(&mut clock, 1 << 33), Some(id));
}

#[test]
fn what_was_given_up_is_due_again_and_once() {
    let id = LeaseId([1; 16]);
    let mut clock = LeaseClock::default();
    clock.grant(LeaseId([2; 16]), 5, || 0);
    clock.grant(id, 10, || 0);
    for _ in 0..3 {
        clock.begin(&id);
        assert_eq!((clock.next(), next_due(&mut clock, 4)), (Some(5), None));
        clock.abandon(&id);
    }
    clock.remove(&LeaseId([2; 16]));
    assert_eq!(next_due(&mut clock, 10), Some(id));
    clock.begin(&id);
    assert_eq!((clock.next(), next_due(&mut clock, 10)), (None, None));
}

#[test]
fn l2_many_that_are_due_go_by_kin_and_within_it_by_deadline_however_they_were_found() {
    let id = |n: u32| LeaseId(u128::from(n).to_be_bytes());
    for many in [10, 1_000, 20_000] {
        let mut clock = LeaseClock::default();
        // Later ones first, and as many again that are not due; of those that are, some were renewed since they were queued.
        for n in (0..2 * many).rev() {
            clock.grant(id(n), u64::from(n), || n % 7);
        }
        let renewed = |n: u32| n.is_multiple_of(5);
        let again = u64::from(3 * many);
        (0..many).filter(|n| renewed(*n)).for_each(|n| clock.renew(&id(n), again));
        let until = u64::from(many) - 1;
        let mut met = Vec::new();
        (0..many).filter(|n| !renewed(*n)).for_each(|n| {
            if !met.contains(&(n % 7)) {
                met.push(n % 7);
            }
        });
        let of = |kin: u32| (0..many).filter(move |n| !renewed(*n) && n % 7 == kin).map(id);
        let expected: Vec<_> = met.into_iter().flat_map(of).collect();
        let mut gone = Vec::new();
        loop {
            let some = clock.upcoming(until, 100);
            assert!(some.len() <= 100);
            if some.is_empty() {
                break;
            }
            for _ in &some {
                clock.begin_next();
            }
            gone.extend(some);
        }
        assert!(gone == expected, "of {many}");
        assert!(gone.iter().all(|id| clock.in_flight(id)));
        assert_eq!(clock.next(), Some(u64::from(many)), "the next one is due when it is");
        assert!((0..many).filter(|n| renewed(*n)).all(|n| clock.deadline(&id(n)) == Some(again)));
        assert_eq!(clock.upcoming(again, usize::MAX).len(), (2 * many) as usize - gone.len());
    }
}

#[test]
fn of_very_many_that_are_due_all_go_and_each_once() {
    const MANY: u32 = 100_000;
    let id = |n: u32| LeaseId(u128::from(n).to_be_bytes());
    let mut clock = LeaseClock::default();
    (0..MANY).for_each(|n| clock.grant(id(n), u64::from(n % 100), || n % 3));
    let mut gone = Vec::new();
    loop {
        let some = clock.upcoming(99, 1_000);
        if some.is_empty() {
            break;
        }
        assert_eq!(some.iter().filter(|id| clock.in_flight(id)).count(), 0);
        for _ in &some {
            clock.begin_next();
        }
        gone.extend(some);
    }
    gone.sort_unstable();
    assert!(gone.into_iter().eq((0..MANY).map(id)));
    assert_eq!(clock.next(), None);
}

#[test]
fn who_comes_into_the_place_of_one_that_ended_is_due_at_its_own_deadline() {
    let id = |n: u8| LeaseId([n; 16]);
    let mut clock = LeaseClock::default();
    clock.grant(id(1), 10, || 0);
    assert_eq!(clock.upcoming(10, 1), [id(1)]);
    clock.remove(&id(1));
    clock.grant(id(2), 20, || 0);
    assert_eq!((clock.upcoming(19, 1), clock.next()), (Vec::new(), Some(20)));
    // In the place of one whose entry is still in the queue, at the same moment and at another.
    for deadline in [20, 30] {
        clock.remove(&id(2));
        clock.grant(id(2), deadline, || 0);
    }
    assert_eq!(clock.entries.iter().count(), 1);
    assert_eq!(clock.upcoming(29, 1), []);
    assert_eq!(clock.upcoming(30, 2), [id(2)]);
    clock.begin_next();
    assert_eq!((clock.next(), clock.upcoming(100, 2)), (None, Vec::new()));
}

#[test]
fn who_renews_in_the_same_order_again_looks_for_no_lease() {
    let id = |n: u8| LeaseId([n; 16]);
    let mut clock = LeaseClock::default();
    for n in 1..=9 {
        clock.grant(id(n), 10, || 0);
        clock.quieten(&id(n), 10);
    }
    let (mut odd, mut even) = (Trail::default(), Trail::default());
    let renew = |clock: &mut LeaseClock, odd: &mut Trail, even: &mut Trail, now| {
        let renewed =
            (1..=9).map(|n| clock.renew_quiet(&id(n), now, if n % 2 == 0 { &mut *even } else { &mut *odd }));
        renewed.filter(|renewed| *renewed).count()
    };
    // The second time it is learnt that the first comes after the last.
    for now in 1..=2 {
        assert_eq!(renew(&mut clock, &mut odd, &mut even, now), 9);
    }
    let places = std::mem::take(&mut clock.places);
    assert_eq!(renew(&mut clock, &mut odd, &mut even, 3), 9, "each found where the trail leads");
    assert!(!clock.renew_quiet(&id(2), 4, &mut Trail::default()), "and nowhere else");
    assert!(!clock.renew_quiet(&id(6), 4, &mut even), "nor if another one follows");
    clock.places = places;
    assert!((1..=9).all(|n| clock.deadline(&id(n)) == Some(13)));
}

#[test]
fn a_trail_changes_nothing_but_how_a_lease_is_found() {
    let id = |n: u64| LeaseId(u128::from(n).to_be_bytes());
    let (mut with, mut without) = (LeaseClock::default(), LeaseClock::default());
    let mut trails = [Trail::default(); 3];
    let mut random = 7_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let (mut renewed, mut refused) = (0, 0);
    for now in 1..40_000 {
        let (what, lease, trail) = (next(20), id(next(12)), next(3));
        for clock in [&mut with, &mut without] {
            match what {
                0 => clock.grant(lease, now + 100, || 0),
                1 => clock.remove(&lease),
                2 => clock.disturb(&lease),
                3 => clock.begin(&lease),
                4 => clock.abandon(&lease),
                5 => clock.suspend(&lease, || 0),
                6..=9 => clock.quieten(&lease, 100),
                _ => {}
            }
        }
        if what >= 10 {
            // Mostly in the same order.
            let trail = usize::try_from(trail).expect("small");
            let lease = if what < 18 { id((now / 3) % 12) } else { lease };
            let led = with.renew_quiet(&lease, now, &mut trails[trail]);
            assert_eq!(led, without.renew_quiet(&lease, now, &mut Trail::default()), "{lease} at {now}");
            if led { renewed += 1 } else { refused += 1 }
        }
        for n in 0..12 {
            assert_eq!(with.deadline(&id(n)), without.deadline(&id(n)), "{n} at {now}");
        }
    }
    assert!(renewed > 1_000 && refused > 1_000, "{renewed} renewed, {refused} not");
}
