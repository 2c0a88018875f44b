//! What balances: a policy, and what stands around it.

use std::{error::Error, sync::Arc, time::Duration};

use client_sdk::{
    Endpoint, LoadBalanceLayer, LoadBalanced,
    balance::{
        LeastRequest, Maglev, PeakEwma, RingHash, RoundRobin, WeightedRandom,
        shape::{SlowStart, ZoneAware},
    },
    layer::LoadBalanceBuilder,
    model::{Address, Locality},
    outlier::OutlierDetection,
    retry::{Again, Retries, Retryable, Rule},
    runtime::Runtime,
};

use crate::fleet::{Client, Fleet, REGION, Request};

/// How long connecting may take.
const MAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one attempt may take, where there may be another.
const PER_TRY: Duration = Duration::from_millis(500);
/// Until a new instance has its whole share, where it starts slowly.
const SLOW_START: Duration = Duration::from_secs(20);

/// A policy and what stands around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// How to choose.
    pub policy: Policy,
    /// With outlier detection and retries.
    pub guarded: bool,
    /// With slow start.
    pub slow_start: bool,
    /// Near ones first.
    pub zones: bool,
}

/// One of the SDK's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // their names say it
pub enum Policy {
    RoundRobin,
    WeightedRandom,
    LeastRequest,
    PeakEwma,
    RingHash,
    Maglev,
    BoundedRingHash,
    BoundedMaglev,
}

/// One caller's service.
pub type Caller = LoadBalanced<Client, Request, ()>;

type Builder = LoadBalanceBuilder<Fleet, Request, (), Address>;

impl Contender {
    /// The policy by itself.
    #[must_use]
    pub const fn plain(policy: Policy) -> Self {
        Self { policy, guarded: false, slow_start: false, zones: false }
    }

    /// The policy with outlier detection and retries.
    #[must_use]
    pub const fn guarded(policy: Policy) -> Self {
        Self { guarded: true, ..Self::plain(policy) }
    }

    /// What it is called in tables.
    #[must_use]
    pub fn name(self) -> String {
        let mut name = self.policy.name().to_owned();
        let parts = [
            (self.guarded, "outliers and retries"),
            (self.slow_start, "slow start"),
            (self.zones, "near ones first"),
        ];
        for (_, part) in parts.iter().filter(|(has, _)| *has) {
            name.push_str(" + ");
            name.push_str(part);
        }
        name
    }

    /// A caller in a zone.
    pub(crate) fn caller(self, fleet: &Arc<Fleet>, zone: &str, runtime: &Runtime) -> Caller {
        let endpoint = Endpoint::new("simulated");
        let builder = LoadBalanceLayer::builder(Arc::clone(fleet), endpoint)
            .runtime(runtime.clone())
            .make_timeout(MAKE_TIMEOUT)
            .hash_key(|request: &Request| Some(request.key));
        let builder = self.policy.set(builder, runtime);
        let builder = if self.guarded {
            builder.outlier_detection(OutlierDetection::default()).retries(retries(), Repeats)
        } else {
            builder.without_outlier_detection()
        };
        let builder = if self.slow_start {
            builder.shaper(SlowStart::new(SLOW_START).expect("within its bounds"))
        } else {
            builder
        };
        let builder = if self.zones {
            builder.shaper(ZoneAware::new(Locality::new(REGION, zone)).expect("a zone"))
        } else {
            builder
        };
        builder.service(fleet.connector())
    }
}

/// Retries as the SDK has them by default, and a request that has no answer for so long is tried elsewhere.
fn retries() -> Retries {
    let rule = Rule::new().idempotent().per_try_timeout(PER_TRY).expect("within its bounds");
    Retries::new().default_rule(rule)
}

/// Any request may be sent again.
struct Repeats;

impl Retryable<Request, ()> for Repeats {
    fn copy(&self, request: &Request) -> Option<Request> {
        Some(*request)
    }

    fn judge(&self, answer: Result<&(), &(dyn Error + Send + Sync + 'static)>) -> Again {
        if answer.is_ok() { Again::No } else { Again::Yes }
    }

    fn is_idempotent(&self, _: &Request) -> bool {
        true
    }
}

impl Policy {
    /// What it is called in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round robin",
            Self::WeightedRandom => "weighted random",
            Self::LeastRequest => "least request",
            Self::PeakEwma => "peak EWMA",
            Self::RingHash => "ring hash",
            Self::Maglev => "Maglev",
            Self::BoundedRingHash => "ring hash, bounded",
            Self::BoundedMaglev => "Maglev, bounded",
        }
    }

    fn set(self, builder: Builder, runtime: &Runtime) -> Builder {
        match self {
            Self::RoundRobin => builder.policy(RoundRobin::new(runtime)),
            Self::WeightedRandom => builder.policy(WeightedRandom::new(runtime)),
            Self::LeastRequest => builder.policy(LeastRequest::new(runtime)),
            Self::PeakEwma => builder.policy(PeakEwma::new(runtime)),
            Self::RingHash => builder.policy(RingHash::new()),
            Self::Maglev => builder.policy(Maglev::new()),
            Self::BoundedRingHash => builder.policy(RingHash::new().bounded()),
            Self::BoundedMaglev => builder.policy(Maglev::new().bounded()),
        }
    }
}
