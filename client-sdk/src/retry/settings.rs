//! What may be sent again: the rules, by method.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic::Code;

use crate::backoff::Bounds;

/// What is retried, how often, and how much of it there may be at all.
///
/// The defaults: three attempts in all, for answers of `UNAVAILABLE` and failed connections, within a budget of a tenth of
/// the requests and 10 a second; no method is taken for idempotent, so what may have been processed and was not answered
/// is not sent again.
///
/// ```
/// use std::time::Duration;
/// use client_sdk::retry::{Retries, Rule};
/// let read = Rule::new().idempotent().per_try_timeout(Duration::from_millis(200))?.hedge_after(0.95)?;
/// let retries = Retries::new()
///     .method("/shop.Catalogue/*", read)?
///     .method("/shop.Cart/Buy", Rule::never())?
///     .budget(0.2, 10)?;
/// # Ok::<(), client_sdk::retry::RetriesError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Retries {
    default: Rule,
    /// By `/package.Service/Method`, and by `/package.Service/` for all of a service.
    methods: HashMap<Arc<str>, Rule>,
    pub(crate) backoff: Bounds,
    pub(crate) ratio: f64,
    pub(crate) floor: u32,
}

/// What is retried of some methods.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// A bit for each code.
    codes: u32,
    pub(crate) idempotent: bool,
    pub(crate) max_attempts: u32,
    pub(crate) per_try_timeout: Option<Duration>,
    pub(crate) hedge_after: Option<f64>,
}

/// Why a setting is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RetriesError {
    /// Of the budget.
    #[error("retry budget: the ratio of retries to requests must be 0 to 10, not {ratio}")]
    Ratio {
        /// What was given.
        ratio: f64,
    },
    /// Of the budget.
    #[error("retry budget: the floor must be 0 to 1,000,000 retries a second, not {floor}")]
    Floor {
        /// What was given.
        floor: u32,
    },
    /// The first attempt counts too.
    #[error("max_attempts must be 1 (no retry) to 10, not {attempts}")]
    Attempts {
        /// What was given.
        attempts: u32,
    },
    /// It would time out before anything was sent.
    #[error("per_try_timeout must be above 0; leave it out for none")]
    PerTryTimeout,
    /// Of hedging.
    #[error("hedge_after: the quantile must be at least 0.5 and below 1, not {quantile}")]
    Quantile {
        /// What was given.
        quantile: f64,
    },
    /// Of hedging.
    #[error(
        "hedge_after: a second attempt may be processed beside the first; say `idempotent()` first, if that does no harm"
    )]
    HedgeNotIdempotent,
    /// An answer of `OK` is never retried.
    #[error("codes: `OK` is no failure; leave it out")]
    CodeOk,
    /// Which methods a rule is for.
    #[error("method: `{method}` is neither `/package.Service/Method` nor `/package.Service/*`")]
    Method {
        /// What was given.
        method: String,
    },
    /// Of the wait between attempts.
    #[error("backoff: the base of {} ms is above the maximum of {} ms", base.as_millis(), max.as_millis())]
    Backoff {
        /// What was given.
        base: Duration,
        /// What was given.
        max: Duration,
    },
}

impl Retries {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            default: Rule::new(),
            methods: HashMap::new(),
            backoff: Bounds { base: Duration::from_millis(10), max: Duration::from_millis(250) },
            ratio: 0.1,
            floor: 10,
        }
    }

    /// Sends nothing again that may have been processed, whatever is answered and whatever the method.
    pub fn none() -> Self {
        Self::new().default_rule(Rule::never())
    }

    /// The rule for methods that have none of their own. Default: [`Rule::new`].
    #[must_use]
    pub fn default_rule(mut self, rule: Rule) -> Self {
        self.default = rule;
        self
    }

    /// The rule for one method (`/package.Service/Method`) or for all of a service that have none of their own
    /// (`/package.Service/*`).
    pub fn method(mut self, method: &str, rule: Rule) -> Result<Self, RetriesError> {
        let parts = method.strip_prefix('/').and_then(|rest| rest.split_once('/'));
        let valid = |(service, name): (&str, &str)| {
            !service.is_empty()
                && !name.is_empty()
                && !name.contains('/')
                && (name == "*" || !name.contains('*'))
        };
        if !parts.is_some_and(valid) {
            return Err(RetriesError::Method { method: method.to_owned() });
        }
        self.methods.insert(method.strip_suffix('*').unwrap_or(method).into(), rule);
        Ok(self)
    }

    /// How many retries and hedges there may be, as [`RetryBudget::new`](super::RetryBudget::new) has it. Default 0.1 of the
    /// requests and 10 a second.
    pub fn budget(mut self, ratio: f64, floor: u32) -> Result<Self, RetriesError> {
        super::RetryBudget::new(ratio, floor)?;
        (self.ratio, self.floor) = (ratio, floor);
        Ok(self)
    }

    /// How long to wait before the second retry and each one after it: `base` at first, doubling up to `max`, each time
    /// between half of it and all of it. The first retry goes at once, for it goes to another instance. A server's
    /// `grpc-retry-pushback-ms` takes its place. Default 10 ms and 250 ms.
    pub fn backoff(mut self, base: Duration, max: Duration) -> Result<Self, RetriesError> {
        if base > max {
            return Err(RetriesError::Backoff { base, max });
        }
        self.backoff = Bounds { base, max };
        Ok(self)
    }

    /// All rules, with what each is for: first the default.
    pub(crate) fn rules(&self) -> (&Rule, impl Iterator<Item = (&Arc<str>, &Rule)>) {
        (&self.default, self.methods.iter())
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self::new()
    }
}

impl Rule {
    /// Three attempts in all, for answers of `UNAVAILABLE`; not idempotent.
    pub fn new() -> Self {
        let unavailable = bit(Code::Unavailable);
        Self {
            codes: unavailable,
            idempotent: false,
            max_attempts: 3,
            per_try_timeout: None,
            hedge_after: None,
        }
    }

    /// Sends nothing again that may have been processed, whatever is answered. A request that certainly never left goes to
    /// another instance all the same.
    pub fn never() -> Self {
        Self { codes: 0, max_attempts: 1, ..Self::new() }
    }

    /// Which codes are retried, if an instance answers them before anything else. Default `UNAVAILABLE`. Failed connections
    /// count as the code that a caller would see: `UNAVAILABLE`, or by a reset's reason.
    pub fn codes(mut self, codes: impl IntoIterator<Item = Code>) -> Result<Self, RetriesError> {
        self.codes = codes.into_iter().map(bit).fold(0, |all, code| all | code);
        if self.codes & bit(Code::Ok) != 0 {
            return Err(RetriesError::CodeOk);
        }
        Ok(self)
    }

    /// Processing a request twice is no worse than once. Then it is also sent again if its connection broke while it was
    /// processed, perhaps, and it may be timed out and hedged. Default: it is not so.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// How many attempts there may be, the first included: 1 (no retry) to 10. Default 3. Hedges count.
    pub fn max_attempts(mut self, attempts: u32) -> Result<Self, RetriesError> {
        if !(1..=10).contains(&attempts) {
            return Err(RetriesError::Attempts { attempts });
        }
        self.max_attempts = attempts;
        Ok(self)
    }

    /// How long an attempt may go without an answer before the request is given to another instance instead, if it is
    /// idempotent and may be retried. Where it may not (no attempt, no budget or no other instance is left), the attempt goes
    /// on: this moves a call and never fails it. Default: none.
    pub fn per_try_timeout(mut self, timeout: Duration) -> Result<Self, RetriesError> {
        if timeout.is_zero() {
            return Err(RetriesError::PerTryTimeout);
        }
        self.per_try_timeout = Some(timeout);
        Ok(self)
    }

    /// Hedges: when no answer has begun after this quantile (0.5 to 1, for example 0.95) of the latencies of late under this
    /// rule, a second attempt goes to another instance; the first good answer counts, and the other attempt is
    /// cancelled. Not before a hundred answers are known. Only for what is [`idempotent`](Self::idempotent). Default: none.
    pub fn hedge_after(mut self, quantile: f64) -> Result<Self, RetriesError> {
        if !(0.5..1.0).contains(&quantile) {
            return Err(RetriesError::Quantile { quantile });
        }
        if !self.idempotent {
            return Err(RetriesError::HedgeNotIdempotent);
        }
        self.hedge_after = Some(quantile);
        Ok(self)
    }

    /// Whether this code is retried.
    pub fn retries(&self, code: Code) -> bool {
        self.max_attempts > 1 && self.codes & bit(code) != 0
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self::new()
    }
}

fn bit(code: Code) -> u32 {
    // There are 17.
    1_u32.wrapping_shl(i32::from(code).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_do() {
        let text = |error: RetriesError| error.to_string();
        assert!(text(Rule::new().max_attempts(0).expect_err("none")).contains("1 (no retry) to 10, not 0"));
        assert!(Rule::new().max_attempts(11).is_err());
        assert!(Rule::new().per_try_timeout(Duration::ZERO).is_err());
        assert!(text(Rule::new().hedge_after(0.9).expect_err("not idempotent")).contains("idempotent()"));
        for quantile in [0.49, 1.0, f64::NAN] {
            assert!(Rule::new().idempotent().hedge_after(quantile).is_err(), "{quantile}");
        }
        assert!(Rule::new().codes([Code::Unavailable, Code::Ok]).is_err());
        assert!(Retries::new().backoff(Duration::from_secs(2), Duration::from_secs(1)).is_err());
        assert!(Retries::new().budget(-1.0, 10).is_err());
        for method in ["", "/", "a.B/C", "/a.B", "/a.B/", "//C", "/a.B/C/D", "/a.B/C*"] {
            assert!(Retries::new().method(method, Rule::new()).is_err(), "{method}");
        }
    }

    #[test]
    fn a_rule_names_its_codes() {
        let rule = Rule::new().codes([Code::Aborted, Code::ResourceExhausted]).expect("valid");
        assert!(rule.retries(Code::Aborted) && rule.retries(Code::ResourceExhausted));
        assert!(!rule.retries(Code::Unavailable) && !rule.retries(Code::Unauthenticated));
        assert!(Rule::new().retries(Code::Unavailable) && !Rule::never().retries(Code::Unavailable));
        assert!(!Rule::new().max_attempts(1).expect("valid").retries(Code::Unavailable));
    }
}
