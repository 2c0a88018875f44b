//! Requests that are sent again: when, where to, how often, and what the caller gets if nothing comes of it.
//!
//! The attempts themselves are the same for the channel and for the layer; here their services do what the test says.

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{
    balance::{Outcome, Pick, PickContext, PickError, Picker, Policy, Report},
    layer::LoadBalancedError,
    model::{Instance, InstanceList},
    retry::{Again, Retries, Retryable, Rule},
};
use tokio::time::Instant;

use crate::kit::{Answer, Balanced, Fleet, Host, Req, World, all_wait, ask, builder};

/// Errors are worth another attempt.
#[derive(Clone, Copy)]
struct Errors {
    copies: bool,
    idempotent: bool,
    again: Again,
}

const ALL: Errors = Errors { copies: true, idempotent: true, again: Again::Yes };

impl Retryable<Req, String> for Errors {
    fn copy(&self, request: &Req) -> Option<Req> {
        self.copies.then_some(*request)
    }

    fn judge(&self, answer: Result<&String, &(dyn Error + Send + Sync + 'static)>) -> Again {
        if answer.is_ok() { Again::No } else { self.again }
    }

    fn is_idempotent(&self, _: &Req) -> bool {
        self.idempotent
    }
}

/// The first instances of the view first, and remembers what it is told of each.
#[derive(Clone, Default)]
struct InOrder(Arc<Mutex<Vec<(String, Outcome)>>>);

struct First {
    instances: InstanceList,
    told: Vec<Arc<dyn Report>>,
}

struct Told(Arc<Instance>, InOrder);

impl InOrder {
    fn told(&self) -> Vec<(String, Outcome)> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

impl Policy for InOrder {
    type Picker = First;

    fn build(&self, instances: &InstanceList) -> First {
        let mut instances = instances.to_vec();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        let told = |it: &Arc<Instance>| Arc::new(Told(Arc::clone(it), self.clone())) as Arc<dyn Report>;
        First { told: instances.iter().map(told).collect(), instances: instances.into() }
    }
}

impl Picker for First {
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        let index = context.attempt as usize % self.instances.len();
        Ok(Pick::new(&self.instances, index)?.reporting(&self.told[index], Duration::ZERO))
    }
}

impl Report for Told {
    fn finished(&self, outcome: Outcome, _: Option<Duration>) {
        self.1.0.lock().expect("no panic").push((self.0.id.to_string(), outcome));
    }
}

struct Scene {
    hosts: Vec<Host>,
    balanced: Balanced,
    policy: InOrder,
    _fleet: Fleet,
}

impl Scene {
    /// Hosts with these names, tried in their order.
    async fn of(names: &str, retries: Retries, retryable: Errors) -> Self {
        let world = World::default();
        let hosts: Vec<_> = names.chars().map(|name| world.host(&name.to_string())).collect();
        let fleet = Fleet::of(hosts.iter().map(Host::instance));
        let policy = InOrder::default();
        let balanced = builder(&fleet).policy(policy.clone()).retries(retries, retryable).service(world);
        balanced.wait_until(|now| now.chosen() == names.len()).await;
        Self { hosts, balanced, policy, _fleet: fleet }
    }

    fn ask(&self, request: Req) -> Answer {
        ask(&self.balanced, request)
    }

    async fn answer(&self, request: Req) -> Result<String, String> {
        told(self.ask(request)).await
    }

    fn calls(&self) -> Vec<usize> {
        self.hosts.iter().map(Host::calls).collect()
    }
}

async fn told(answer: Answer) -> Result<String, String> {
    answer.await.expect("no panic").map_err(|error| match error {
        LoadBalancedError::Service { source, .. } => source.to_string(),
        other => other.to_string(),
    })
}

fn failed(hosts: &str) -> Vec<(String, Outcome)> {
    hosts.chars().map(|host| (host.to_string(), Outcome::Failure)).collect()
}

fn idempotent() -> Rule {
    Rule::new().idempotent()
}

fn ruled(rule: Rule) -> Retries {
    Retries::new().default_rule(rule)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_failed_goes_to_others_each_once() {
    let scene = Scene::of("abcd", Retries::new(), ALL).await;
    assert_eq!(scene.answer("fail@ab").await, Ok("c".to_owned()));
    assert_eq!(scene.calls(), [1, 1, 1, 0]);
    let mut expected = failed("ab");
    expected.push(("c".to_owned(), Outcome::Success));
    assert_eq!(scene.policy.told(), expected);
}

#[tokio::test(start_paused = true)]
async fn after_the_last_attempt_the_caller_gets_the_last_error() {
    let scene = Scene::of("abcd", Retries::new(), ALL).await;
    assert_eq!(scene.answer("fail@abcd").await, Err("c cannot".to_owned()));
    assert_eq!(scene.calls(), [1, 1, 1, 0], "three attempts");
    // All had it: nobody gets it twice, however many attempts are left.
    let scene = Scene::of("ab", ruled(Rule::new().max_attempts(10).expect("valid")), ALL).await;
    assert_eq!(scene.answer("fail").await, Err("b cannot".to_owned()));
    assert_eq!(scene.calls(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn without_retries_a_failed_request_stays_failed() {
    for (retries, retryable) in [
        (Retries::none(), ALL),
        (Retries::new(), Errors { copies: false, ..ALL }),
        (Retries::new(), Errors { again: Again::No, ..ALL }),
        (ruled(Rule::new().max_attempts(1).expect("valid")), ALL),
    ] {
        let scene = Scene::of("ab", retries, retryable).await;
        assert_eq!(scene.answer("fail@a").await, Err("a cannot".to_owned()));
        assert_eq!(scene.calls(), [1, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_keeps_the_real_error() {
    let scene = Scene::of("ab", Retries::new().budget(0.1, 0).expect("valid"), ALL).await;
    for _ in 0..8 {
        assert_eq!(scene.answer("").await, Ok("a".to_owned()));
    }
    assert_eq!(scene.answer("fail@a").await, Err("a cannot".to_owned()), "nine tenths of a retry");
    assert_eq!(scene.answer("fail@a").await, Ok("b".to_owned()), "ten requests: one retry");
    assert_eq!(scene.answer("fail@a").await, Err("a cannot".to_owned()), "and no more than one");
    assert_eq!(scene.calls(), [11, 1]);
}

#[tokio::test(start_paused = true)]
async fn retries_wait_longer_and_longer_and_the_first_does_not() {
    let (base, max) = (Duration::from_millis(100), Duration::from_millis(150));
    let retries = ruled(Rule::new().max_attempts(4).expect("valid")).backoff(base, max).expect("valid");
    let scene = Scene::of("abcd", retries, ALL).await;
    let since = Instant::now();
    assert_eq!(scene.answer("fail@a").await, Ok("b".to_owned()));
    assert_eq!(since.elapsed(), Duration::ZERO);
    assert_eq!(scene.answer("fail@abc").await, Ok("d".to_owned()));
    // 50 to 100 ms, and 75 to 150.
    assert!((125..=253).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    let after = Duration::from_secs(3);
    let scene = Scene::of("ab", Retries::new(), Errors { again: Again::After(after), ..ALL }).await;
    let since = Instant::now();
    assert_eq!(scene.answer("fail@a").await, Ok("b".to_owned()));
    assert!((3_000..3_003).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_request_without_an_answer_in_time_goes_to_another() {
    let rule = Rule::new().per_try_timeout(Duration::from_millis(100)).expect("valid");
    let scene = Scene::of("abc", ruled(rule), ALL).await;
    let since = Instant::now();
    assert_eq!(scene.answer("hold@ab").await, Ok("c".to_owned()));
    assert!((200..203).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    let mut expected = failed("ab");
    expected.push(("c".to_owned(), Outcome::Success));
    assert_eq!(scene.policy.told(), expected, "whoever did not answer is to blame");
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_fails_no_request_that_may_go_nowhere_else() {
    let rule = Rule::new().per_try_timeout(Duration::from_millis(100)).expect("valid");
    let spent = ruled(rule.clone()).budget(0.0, 0).expect("valid");
    for (names, retries, retryable) in [
        ("ab", ruled(rule.clone()), Errors { idempotent: false, ..ALL }),
        ("ab", ruled(rule.clone()), Errors { copies: false, ..ALL }),
        ("ab", ruled(rule.clone().max_attempts(1).expect("valid")), ALL),
        ("ab", spent, ALL),
        ("a", ruled(rule), ALL),
    ] {
        let scene = Scene::of(names, retries, retryable).await;
        let held = scene.ask("hold");
        scene.hosts[0].arrived().await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        scene.hosts[0].open(1);
        assert_eq!(told(held).await, Ok("a".to_owned()));
        assert_eq!(scene.calls()[1..].iter().sum::<usize>(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn when_nothing_comes_of_a_time_limit_the_error_says_so() {
    let rule = Rule::new().per_try_timeout(Duration::from_millis(100)).expect("valid");
    let scene = Scene::of("ab", ruled(rule.max_attempts(2).expect("valid")), ALL).await;
    assert_eq!(
        scene.answer("hold@a fail@b").await,
        Err("b cannot".to_owned()),
        "the last word of an instance"
    );
}

/// A hundred answers after 10 ms: hedges come a little later than that.
async fn hedging(names: &str, retries: Retries) -> Scene {
    let scene = Scene::of(names, retries, ALL).await;
    for _ in 0..100 {
        assert_eq!(scene.answer("10ms hold@b").await, Ok("a".to_owned()), "no hedge before enough is known");
    }
    scene.policy.told();
    scene
}

fn hedged() -> Rule {
    idempotent().hedge_after(0.95).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_is_faster_wins_and_the_first_attempt_is_cancelled() {
    let scene = hedging("ab", ruled(hedged())).await;
    let since = Instant::now();
    assert_eq!(scene.answer("hold@a").await, Ok("b".to_owned()));
    assert!((10..16).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    let cancelled = ("a".to_owned(), Outcome::Cancelled);
    let mut told = scene.policy.told();
    told.sort_by(|a, b| b.0.cmp(&a.0));
    assert_eq!(told, [("b".to_owned(), Outcome::Success), cancelled]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_is_slower_is_cancelled() {
    let scene = hedging("ab", ruled(hedged())).await;
    assert_eq!(scene.answer("10ms 10ms hold@b").await, Ok("a".to_owned()));
    assert_eq!(scene.hosts[1].calls(), 1, "it was made");
    let mut told = scene.policy.told();
    told.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(told, [("a".to_owned(), Outcome::Success), ("b".to_owned(), Outcome::Cancelled)]);
}

#[tokio::test(start_paused = true)]
async fn of_two_attempts_the_first_good_answer_counts_and_not_the_first() {
    let scene = hedging("abc", ruled(hedged())).await;
    assert_eq!(scene.answer("10ms 10ms fail@b").await, Ok("a".to_owned()), "the hedge failed first");
    assert_eq!(scene.answer("10ms@a 10ms@a fail@a 10ms@b 10ms@b").await, Ok("b".to_owned()), "the first did");
    assert_eq!(
        scene.answer("10ms 10ms fail@ab").await,
        Ok("c".to_owned()),
        "both did: there is a third attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn hedges_are_for_idempotent_requests_and_within_the_budget() {
    let scene = Scene::of("ab", ruled(hedged()).budget(0.01, 0).expect("valid"), ALL).await;
    for _ in 0..100 {
        scene.answer("10ms").await.expect("answered");
    }
    assert_eq!(scene.answer("hold@a").await, Ok("b".to_owned()), "a hundred requests: one hedge");
    let held = scene.ask("hold@a");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.hosts[1].calls(), 1, "the budget is spent");
    scene.hosts[0].open(1);
    // The first one, which was cancelled, is not there any more to take it.
    assert_eq!(told(held).await, Ok("a".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn two_attempts_side_by_side_that_both_hang_are_given_up_for_a_third() {
    let rule = hedged().per_try_timeout(Duration::from_millis(100)).expect("valid");
    let scene = hedging("abc", ruled(rule)).await;
    let since = Instant::now();
    assert_eq!(scene.answer("hold@ab").await, Ok("c".to_owned()));
    assert!((110..120).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    all_wait().await;
    let mut told = scene.policy.told();
    told.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected = failed("ab");
    expected.push(("c".to_owned(), Outcome::Success));
    assert_eq!(told, expected, "both are to blame");
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_takes_its_attempts_with_it() {
    let scene = hedging("ab", ruled(hedged())).await;
    let held = scene.ask("hold");
    scene.hosts[0].arrived().await;
    scene.hosts[1].arrived().await;
    held.abort();
    held.await.expect_err("given up");
    let in_flight =
        |scene: &Scene| scene.balanced.snapshot().instances.iter().map(|it| it.in_flight).sum::<usize>();
    assert_eq!(in_flight(&scene), 0);
    assert!(scene.policy.told().iter().all(|(_, outcome)| *outcome == Outcome::Cancelled));
}
