//! What a channel or a layer keeps of its settings for all requests, and what one request may still do.
//!
//! Pure: decides whether a failure is worth another attempt, and when. Owns neither the sending nor the choice of an instance.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic::Code;

use super::{Pushback, Retries, RetryBudget, Rule, quantile::Latencies};
use crate::{backoff::Bounds, runtime::Runtime};

/// The settings in use: one for all clones.
#[derive(Debug)]
pub(crate) struct Plan {
    default: Ruled,
    /// As [`Retries`] has them.
    methods: HashMap<Arc<str>, Ruled>,
    pub(super) budget: RetryBudget,
    backoff: Bounds,
}

/// A rule, and what was learnt under it.
#[derive(Debug)]
pub(super) struct Ruled {
    pub(super) rule: Rule,
    pub(super) latencies: Latencies,
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was answered so before anything else: nothing of another answer is seen by the caller yet.
    Answered { code: Code, pushback: Option<Pushback> },
    /// It may have been processed, and there is no answer.
    Lost(Code),
    /// It was answered so, and whoever knows such answers says that it is worth another attempt.
    Judged(Option<Duration>),
}

/// One request's attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    pub(super) ruled: &'a Ruled,
    /// May be told of a request by itself.
    idempotent: bool,
    pub(super) made: u32,
}

impl Plan {
    pub(crate) fn new(retries: &Retries) -> Self {
        let ruled = |rule: &Rule| Ruled { rule: rule.clone(), latencies: Latencies::default() };
        let (default, methods) = retries.rules();
        let budget = RetryBudget::new(retries.ratio, retries.floor).expect("checked when it was set");
        Self {
            default: ruled(default),
            methods: methods.map(|(method, rule)| (Arc::clone(method), ruled(rule))).collect(),
            budget,
            backoff: retries.backoff,
        }
    }

    /// The attempts of a call of this path.
    pub(crate) fn course(&self, path: &str) -> Course<'_> {
        let ruled = if self.methods.is_empty() {
            &self.default
        } else {
            let service = path.rfind('/').map_or("", |slash| &path[..=slash]);
            self.methods.get(path).or_else(|| self.methods.get(service)).unwrap_or(&self.default)
        };
        Course { ruled, idempotent: ruled.rule.idempotent, made: 0 }
    }

    /// How long to wait before another attempt. `None`: there is to be none.
    pub(crate) fn pause(
        &self,
        course: &Course<'_>,
        failure: &Failure,
        runtime: &Runtime,
    ) -> Option<Duration> {
        if !course.has_more() || !course.is_worth_it(failure) {
            return None;
        }
        match failure {
            Failure::Answered { pushback: Some(Pushback::Never), .. } => None,
            Failure::Answered { pushback: Some(Pushback::After(pause)), .. }
            | Failure::Judged(Some(pause)) => Some(*pause),
            // The first goes to another instance, which has no part in this.
            _ if course.made <= 1 => Some(Duration::ZERO),
            _ => Some(self.backoff.pause(course.made - 1, runtime)),
        }
    }
}

impl<'a> Course<'a> {
    /// This request may be processed twice, whatever the rule says.
    pub(crate) fn set_idempotent(&mut self) {
        self.idempotent = true;
    }

    /// Whether such a failure is worth another attempt, if there may be one: then it is not what a caller waits for.
    pub(super) fn is_worth_it(&self, failure: &Failure) -> bool {
        match failure {
            Failure::Answered { code, .. } => self.ruled.rule.retries(*code),
            Failure::Lost(code) => self.idempotent && self.ruled.rule.retries(*code),
            Failure::Judged(_) => true,
        }
    }

    /// The same as [`is_worth_it`](Self::is_worth_it), by itself.
    pub(super) fn judge(&self) -> impl Fn(&Failure) -> bool + Copy + Send + use<'a> {
        let course = *self;
        move |failure| course.is_worth_it(failure)
    }

    /// How many attempts there may be.
    pub(crate) fn max_attempts(&self) -> u32 {
        self.ruled.rule.max_attempts
    }

    /// Whether it goes by latencies.
    pub(super) fn measures(&self) -> bool {
        self.ruled.rule.hedge_after.is_some()
    }

    /// Whether there may be another attempt at all.
    pub(super) fn has_more(&self) -> bool {
        self.made < self.max_attempts()
    }

    /// When an attempt that has no answer is to be given up for another one.
    pub(super) fn per_try_timeout(&self) -> Option<Duration> {
        self.ruled.rule.per_try_timeout.filter(|_| self.idempotent && self.has_more())
    }

    /// When the first attempt, if it has no answer, is to get another one beside it.
    pub(super) fn hedge_after(&self) -> Option<Duration> {
        let share = self.ruled.rule.hedge_after.filter(|_| self.idempotent && self.made == 1)?;
        self.ruled.latencies.quantile(share).filter(|_| self.has_more())
    }

    /// An attempt was answered after so long, or had no answer until then.
    pub(super) fn answered(&self, latency: Duration) {
        self.ruled.latencies.record(latency);
    }
}

impl Failure {
    /// In a word, for counting.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Answered { code, .. } => name(*code),
            Self::Lost(_) => "connection_lost",
            Self::Judged(_) => "answer",
        }
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{TokioClock, TokioConnect, TokioSpawn};

    fn answered(code: Code) -> Failure {
        Failure::Answered { code, pushback: None }
    }

    fn after(plan: &Plan, path: &str, made: u32, failure: &Failure) -> Option<Duration> {
        let runtime = Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 1);
        let mut course = plan.course(path);
        course.made = made;
        plan.pause(&course, failure, &runtime)
    }

    #[tokio::test]
    async fn a_method_goes_by_its_own_rule_then_its_services_then_the_default() {
        let only = |code| Rule::new().codes([code]).expect("valid");
        let retries = Retries::new()
            .method("/a.B/*", only(Code::Aborted))
            .and_then(|retries| retries.method("/a.B/C", only(Code::DataLoss)))
            .expect("valid");
        let plan = Plan::new(&retries);
        for (path, code) in [
            ("/a.B/C", Code::DataLoss),
            ("/a.B/D", Code::Aborted),
            ("/a.X/C", Code::Unavailable),
            ("", Code::Unavailable),
        ] {
            for other in [Code::DataLoss, Code::Aborted, Code::Unavailable] {
                assert_eq!(
                    after(&plan, path, 1, &answered(other)).is_some(),
                    other == code,
                    "{path} {other}"
                );
            }
        }
    }

    #[tokio::test]
    async fn what_may_have_been_processed_unanswered_is_sent_again_only_if_idempotent() {
        let retries = Retries::new().method("/a.B/Get", Rule::new().idempotent()).expect("valid");
        let plan = Plan::new(&retries);
        let lost = Failure::Lost(Code::Unavailable);
        assert_eq!(after(&plan, "/a.B/Get", 1, &lost), Some(Duration::ZERO));
        assert_eq!(after(&plan, "/a.B/Put", 1, &lost), None);
        assert_eq!(after(&plan, "/a.B/Get", 1, &Failure::Lost(Code::Internal)), None, "not one of its codes");
        assert_eq!(after(&plan, "/a.B/Put", 1, &answered(Code::Unavailable)), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn the_first_retry_goes_at_once_and_the_others_wait_longer_and_longer() {
        let rule = Rule::new().max_attempts(10).expect("valid");
        let plan = Plan::new(&Retries::new().default_rule(rule));
        let pause = |made| after(&plan, "/a.B/C", made, &answered(Code::Unavailable));
        assert_eq!(pause(1), Some(Duration::ZERO));
        for (made, millis) in [(2, 10), (3, 20), (6, 160), (9, 250)] {
            let top = Duration::from_millis(millis);
            let pause = pause(made).expect("another");
            assert!(top / 2 <= pause && pause <= top, "{made}: {pause:?}");
        }
        assert_eq!(pause(10), None, "ten were made");
    }

    #[tokio::test]
    async fn the_servers_word_is_taken() {
        let plan = Plan::new(&Retries::new());
        let said = |pushback| Failure::Answered { code: Code::Unavailable, pushback: Some(pushback) };
        let seven = Duration::from_secs(7);
        assert_eq!(after(&plan, "/a.B/C", 1, &said(Pushback::After(seven))), Some(seven));
        assert_eq!(after(&plan, "/a.B/C", 1, &said(Pushback::Never)), None);
        let other = Failure::Answered { code: Code::NotFound, pushback: Some(Pushback::After(seven)) };
        assert_eq!(after(&plan, "/a.B/C", 1, &other), None, "it makes nothing worth a retry that is not");
    }

    #[test]
    fn time_limits_and_hedges_are_for_what_is_idempotent_and_may_go_on() {
        let timed = Rule::new().per_try_timeout(Duration::from_secs(1)).expect("valid");
        let plan = |rule| Plan::new(&Retries::new().default_rule(rule));
        assert_eq!(plan(timed.clone()).course("/a.B/C").per_try_timeout(), None);
        let plan = plan(timed.idempotent().hedge_after(0.9).expect("valid"));
        let mut course = plan.course("/a.B/C");
        course.made = 1;
        assert_eq!(course.per_try_timeout(), Some(Duration::from_secs(1)));
        assert_eq!(course.hedge_after(), None, "nothing is known yet");
        (0..100).for_each(|_| course.answered(Duration::from_millis(10)));
        assert!(course.hedge_after().is_some());
        course.made = 2;
        assert_eq!(course.hedge_after(), None, "a hedge is the second attempt");
        course.made = 3;
        assert_eq!(course.per_try_timeout(), None, "there is no further attempt");
    }
}
