//! Builds a channel.

use std::{sync::Arc, time::Duration};

use super::{BalancedChannel, settings::Settings};
use crate::{
    backoff::Bounds,
    balance::{
        CallerOrder, HashKeys, LoadBalance, Policy, RoundRobin,
        shape::{Filter, PanicThreshold, Shaper, Shaping},
    },
    discover::{Discover, follow_to_apply},
    members::{self, Aperture, Chooser, Overflow, Shared},
    model::Endpoint,
    outlier::OutlierDetection,
    retry::Retries,
    runtime::Runtime,
};

/// Builds a [`BalancedChannel`]. Made by [`BalancedChannel::builder`].
pub struct ChannelBuilder<D> {
    discover: Arc<D>,
    endpoint: Endpoint,
    chooser: Option<Chooser>,
    settings: Settings,
    members: members::Settings,
    caller: Option<CallerOrder>,
    runtime: Option<Runtime>,
}

impl<D: Discover> ChannelBuilder<D> {
    pub(super) fn new(discover: Arc<D>, endpoint: Endpoint) -> Self {
        Self {
            discover,
            endpoint,
            chooser: None,
            settings: Settings::default(),
            members: members::Settings::default(),
            caller: None,
            runtime: None,
        }
    }

    /// How to choose among the connected instances. Default: [`RoundRobin`].
    #[must_use]
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.chooser = Some(Chooser::policy(policy));
        self
    }

    /// Chooses by a load balancer instead of a policy. Its addresses are mapped back to instances of the view; those
    /// that are not connected, or take no requests, are passed over by taking the next address. It gets no feedback
    /// but the changes of the view. An endpoint with an address bypasses it.
    #[must_use]
    pub fn load_balancer(mut self, balance: impl LoadBalance<D>) -> Self {
        self.chooser = Some(Chooser::load_balance(Arc::clone(&self.discover), balance));
        self
    }

    /// Whether calls wait until some instance takes them. Default: no, they fail as soon as nothing is left to hope
    /// for; they wait only for the first answer of the discovery, and while instances are being connected of which none
    /// failed yet.
    #[must_use]
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.members.wait_for_ready = wait;
        self
    }

    /// The longest that a call waits for an instance. Default: twice the connect timeout, so that a call outlasts an
    /// instance that nobody answers for and goes to another; if calls wait for ready, their own deadline, or 30 s if they
    /// have none. A call's own deadline always bounds it too.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.members.max_wait = Some(wait);
        self
    }

    /// How many calls may wait for an instance at once; more fail with `QueueFull`. Default 1,024.
    #[must_use]
    pub fn queue_limit(mut self, calls: usize) -> Self {
        self.members.queue_limit = calls;
        self
    }

    /// How instances are judged by how calls to them went, and for how long one that fails too much gets none. Default:
    /// [`OutlierDetection::default`], gRFC A50's settings and five failures in a row. A call fails for its
    /// instance by a code that says so, by a missing one, or by its deadline; a connection that cannot be opened, or is lost, is no
    /// reason to eject.
    #[must_use]
    pub fn outlier_detection(mut self, detection: OutlierDetection) -> Self {
        self.members.outlier_detection = Some(detection);
        self
    }

    /// Judges no instance: none is ever ejected.
    #[must_use]
    pub fn without_outlier_detection(mut self) -> Self {
        self.members.outlier_detection = None;
        self
    }

    /// How many calls an instance may have in flight at once, at least 1. One that has as many is passed over; what
    /// becomes of a call when all have is [`overflow`](Self::overflow). Default: any number.
    #[must_use]
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.members.max_in_flight = Some(calls.max(1));
        self
    }

    /// How many calls may wait because all instances have as many in flight as they may; more fail with
    /// [`RouteError::Overloaded`](crate::members::RouteError::Overloaded). Default: the [`queue_limit`](Self::queue_limit),
    /// which bounds all that wait in any case.
    #[must_use]
    pub fn max_pending(mut self, calls: usize) -> Self {
        self.members.max_pending = Some(calls);
        self
    }

    /// What becomes of a call when all instances that it could go to have as many in flight as they may. Default
    /// [`Overflow::Wait`].
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.members.overflow = overflow;
        self
    }

    /// Adds a filter, after those that are there: which instances this caller uses at all, see
    /// [`shape`](crate::balance::shape). The others are not connected to, and no call goes there. Default: none. An endpoint
    /// with an address passes it by.
    #[must_use]
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.members.shaping = self.members.shaping.filter(filter);
        self
    }

    /// Adds a shaper, after those that are there: what shares instances get by their health and the time, see
    /// [`shape`](crate::balance::shape). Default: none. An endpoint with an address, and a
    /// [`load_balancer`](Self::load_balancer), pass it by.
    #[must_use]
    pub fn shaper(mut self, shaper: impl Shaper) -> Self {
        self.members.shaping = self.members.shaping.shaper(shaper);
        self
    }

    /// Sets when ejections and `held` are ignored, as too few instances are healthy. Default: with fewer than 50 %.
    #[must_use]
    pub fn panic_threshold(mut self, threshold: PanicThreshold) -> Self {
        self.members.shaping = self.members.shaping.panic_threshold(threshold);
        self
    }

    /// How many instances are connected before any call, if there are more. Default 100; at least 1.
    ///
    /// Which ones is the caller's own order ([`CallerOrder`]), and for each of them that fails one more is connected. So
    /// many callers of many instances keep few connections each, and all instances are about equally connected. Policies
    /// that connect on demand ([`Connects::OnDemand`](crate::balance::Connects)) connect none ahead.
    #[must_use]
    pub fn connect_ahead(mut self, instances: usize) -> Self {
        self.members.connect_ahead = instances.max(1);
        self
    }

    /// Uses as many instances as the demand asks for, instead of [`connect_ahead`](Self::connect_ahead): see [`Aperture`]. Default:
    /// none.
    ///
    /// It decides how many instances are connected; how many connections there are to each is still
    /// [`connections_per_instance`](Self::connections_per_instance): further ones are opened as an instance's are full, and closed
    /// when they are idle. A call is in flight until its answer has ended, so a stream counts for as long as it lasts.
    ///
    /// A policy that connects on demand ([`Connects::OnDemand`](crate::balance::Connects): the hashes) may choose any
    /// instance at any time, so there is nothing to decide: with one an aperture is ignored, a warning says so, and
    /// [`Snapshot::aperture`](crate::members::Snapshot::aperture) is `None`.
    #[must_use]
    pub fn aperture(mut self, aperture: Aperture) -> Self {
        self.members.aperture = Some(aperture);
        self
    }

    /// Where the hash key of a call is looked for, and what a missing one means. Default: in the request's extensions
    /// ([`HashKey`](crate::balance::HashKey)), then the endpoint; a missing one is an error for policies that hash.
    #[must_use]
    pub fn hash_keys(mut self, keys: HashKeys) -> Self {
        self.settings.hash_keys = keys;
        self
    }

    /// In which order this caller prefers instances. Default: a random one. Give it the process's stable name, so that it
    /// prefers the same instances after a restart.
    #[must_use]
    pub fn caller(mut self, caller: CallerOrder) -> Self {
        self.caller = Some(caller);
        self
    }

    /// What is sent again to another instance after it failed, of which methods, and how much of that there may be.
    /// Default: [`Retries::new`]: up to two retries of calls that were answered `UNAVAILABLE`, within a tenth of the calls and 10
    /// a second. What broke after it had left is sent again only for methods that are said to be idempotent.
    #[must_use]
    pub fn retries(mut self, retries: Retries) -> Self {
        self.settings.retries = retries;
        self
    }

    /// Sends nothing again but what certainly never left.
    #[must_use]
    pub fn without_retries(self) -> Self {
        self.retries(Retries::none())
    }

    /// How much of a request's body is kept, in bytes, until its answer begins, to be sent again if the first instance
    /// turns out not to have taken it, or failed it. What is longer is sent once. Default 64 KiB.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.settings.replay_limit = bytes;
        self
    }

    /// How long opening a connection may take, the HTTP/2 greeting included. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self.members.default_wait = timeout.saturating_mul(2);
        self
    }

    /// HTTP/2 keepalive: after `interval` without a frame, at the latest, a ping is sent (at the earliest after half of it,
    /// and never within `interval` of the last answer to one), and after `timeout` without an answer the connection is
    /// given up. Default 10 s and 5 s, so that a dead peer is noticed within 15 s.
    #[must_use]
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.settings.keepalive_interval = interval;
        self.settings.keepalive_timeout = timeout;
        self
    }

    /// Whether connections without calls are pinged too. Default: yes. Turn it off, or lengthen the interval, for
    /// servers that count pings against their clients, as the C++ and Go ones do unless told otherwise
    /// (`too_many_pings`).
    #[must_use]
    pub fn keepalive_while_idle(mut self, ping: bool) -> Self {
        self.settings.keepalive_while_idle = ping;
        self
    }

    /// How long an instance that could not be connected is left alone: `base` after the first failure, doubling up to
    /// `max`, each time between half of it and all of it. Default 100 ms and 30 s. A new incarnation of the instance
    /// ends it.
    #[must_use]
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.settings.backoff = Bounds { base, max };
        self
    }

    /// Speaks TLS to every instance. Default: no. See [`Tls`](super::Tls) for whose certificate is expected.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: super::Tls) -> Self {
        self.settings.tls = Some(tls);
        self
    }

    /// How many HTTP/2 connections may be open to one instance at once: 1 to 1,000; what is beyond counts as the
    /// nearest. Default 1.
    ///
    /// The first is opened as the channel sees fit. A further one is opened, one at a time, when all that are open have
    /// as many calls in flight as their peer allows (its `SETTINGS_MAX_CONCURRENT_STREAMS`, as it is by then; 100 if it
    /// sets no limit), and closes again after 60 s without a call, 120 s at the latest. If it cannot be opened, that is
    /// tried again after the [`backoff`](Self::backoff).
    ///
    /// A call goes to the connection with the fewest calls. One that finds all full waits until an earlier call to the
    /// instance ends or another connection is open. Until then it has not left: its deadline bounds the wait, and if the
    /// connections end, or the instance takes no more requests, it goes elsewhere.
    #[must_use]
    pub fn connections_per_instance(mut self, max: usize) -> Self {
        self.settings.connections_per_instance = max.clamp(1, 1000);
        self
    }

    /// The outside world. Default: the real one.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The channel. Must be called where its runtime can spawn: in a tokio runtime, for the default one. It starts
    /// to discover and connect at once.
    pub fn build(self) -> BalancedChannel {
        let runtime = self.runtime.unwrap_or_default();
        let bypass = self.endpoint.address.is_some();
        let chooser = match self.chooser {
            Some(Chooser::LoadBalance(_)) if bypass => None,
            chooser => chooser,
        };
        let chooser = chooser.unwrap_or_else(|| Chooser::policy(RoundRobin::new(&runtime)));
        let followed = follow_to_apply(self.discover, self.endpoint.clone(), &runtime);
        let caller = self.caller.unwrap_or_else(|| CallerOrder::new(runtime.random()));
        let mut members = self.members;
        if bypass {
            members.shaping = Shaping::default();
        }
        let shared = Shared::new(self.endpoint, members, caller, runtime, chooser);
        BalancedChannel::start(shared, self.settings, followed)
    }
}

impl<D> std::fmt::Debug for ChannelBuilder<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelBuilder")
            .field("endpoint", &self.endpoint)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
