//! What to register, and how.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{
    Registration, RegistrationState, RegistrationStatus,
    driver::Driver,
    lease::{Lease, Slot},
};
use crate::{
    backoff::Backoff,
    client::{MissingRegistry, RegisterError, RegistryClient, random_name},
    model::{Address, Instance},
};

/// Builds a [`Registration`].
#[derive(Clone, Debug)]
pub struct RegistrationBuilder {
    client: RegistryClient,
    namespace: Arc<str>,
    service: Option<Arc<str>>,
    instances: Vec<(Slot, Instance)>,
    without_service: bool,
    ttl: Duration,
    instance_uid: Option<String>,
    generation: u64,
    missing: MissingRegistry,
    drain_grace: Duration,
    drain_timeout: Duration,
}

impl RegistrationBuilder {
    pub(super) fn new(client: RegistryClient) -> Self {
        Self {
            client,
            namespace: "default".into(),
            service: None,
            instances: Vec::new(),
            without_service: false,
            ttl: Duration::from_secs(15),
            instance_uid: None,
            generation: 1,
            missing: MissingRegistry::FailFast,
            drain_grace: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(10),
        }
    }

    /// The namespace of the services named after this. Default `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Self {
        let namespace = namespace.into();
        self.namespace = if namespace.is_empty() { "default".into() } else { namespace };
        self
    }

    /// The service of the instances added after this. Several services may share the lease.
    #[must_use]
    pub fn service(mut self, service: impl Into<Arc<str>>) -> Self {
        self.service = Some(service.into());
        self
    }

    /// Adds an instance of the service at this address, with the address as its id, of weight 1.
    #[must_use]
    pub fn address(self, address: Address) -> Self {
        self.instance(Instance::builder(address).build())
    }

    /// Adds an instance of the service. Of two with the same id, the later one counts.
    #[must_use]
    pub fn instance(mut self, instance: Instance) -> Self {
        match &self.service {
            Some(service) => {
                let slot = Slot {
                    namespace: Arc::clone(&self.namespace),
                    service: Arc::clone(service),
                    id: Arc::clone(&instance.id),
                };
                self.instances.push((slot, instance));
            }
            None => self.without_service = true,
        }
        self
    }

    /// How long the instances stay without a renewal: 1 s to 24 h, narrower if the registry is set so. Renewed at a
    /// third of what the registry grants. Default 15 s.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Names this process for the registry: 1 to 253 characters of `[A-Za-z0-9._:/@-]`. A name that is kept across
    /// restarts needs a [`generation`](Self::generation) that grows with each. Default: random, and so never taken for
    /// another process's.
    #[must_use]
    pub fn instance_uid(mut self, instance_uid: impl Into<String>) -> Self {
        self.instance_uid = Some(instance_uid.into());
        self
    }

    /// Which start of this `instance_uid` it is: the registry refuses a lower one while a higher one holds a lease.
    /// Default 1, which is right for a random `instance_uid`.
    #[must_use]
    pub fn generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// Whether [`register`](Self::register) waits for a missing registry, without end, or fails. Default: fail fast.
    #[must_use]
    pub fn missing_registry(mut self, missing: MissingRegistry) -> Self {
        self.missing = missing;
        self
    }

    /// How long a drain waits for the callers if the registry is one from before `WaitApplied`, which cannot say when they know.
    /// Others are not waited for any longer than it takes. Default 1 s.
    #[must_use]
    pub fn drain_grace(mut self, grace: Duration) -> Self {
        self.drain_grace = grace;
        self
    }

    /// How long a drain waits at most until the callers know, marking the instances included. What is in flight then takes as
    /// long as it takes. Default 10 s.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Registers, and keeps the registration alive from then on. Must be called inside the runtime. If it is given up in
    /// the middle, or times out, the registry may have taken the instances; they go when the lease runs out.
    pub async fn register(self) -> Result<Registration, RegisterError> {
        if self.without_service {
            return Err(RegisterError::Incomplete(
                "an instance was added before its service was named; call `service` first",
            ));
        }
        if self.instances.is_empty() {
            return Err(RegisterError::Incomplete("no instance was added; call `address` or `instance`"));
        }
        let runtime = self.client.runtime().clone();
        let mut lease_id = [0; 16];
        lease_id[..8].copy_from_slice(&runtime.random().to_le_bytes());
        lease_id[8..].copy_from_slice(&runtime.random().to_le_bytes());
        let mut lease = Lease {
            id: lease_id,
            instance_uid: self.instance_uid.unwrap_or_else(|| random_name(&runtime)),
            generation: self.generation,
            ttl: self.ttl,
            granted: self.ttl,
            revision: 0,
            epoch: String::new(),
            instances: self.instances.into_iter().collect(),
            taken: BTreeMap::new(),
        };
        let mut backoff = Backoff::default();
        let response = loop {
            match self.client.register(lease.request(), self.missing).await {
                Ok(response) => break response,
                Err(error) if self.missing == MissingRegistry::Wait && error.is_passing() => {
                    let pause = backoff.next(&runtime);
                    tracing::info!(%error, ?pause, "waiting for the registry");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        };
        lease.granted(&response);
        let state = RegistrationState::Registered { revision: response.revision };
        let (status, watched) = watch::channel(RegistrationStatus { state, lost: [].into() });
        let (commands, receiver) = mpsc::channel(16);
        // Not owned by the handle: it sees the handle go, deregisters, and ends by itself.
        runtime.detach(Driver::new(self.client.clone(), lease, status, receiver).run());
        Ok(Registration {
            client: self.client,
            commands,
            status: watched,
            lease_id,
            drain_grace: self.drain_grace,
            drain_timeout: self.drain_timeout,
        })
    }
}
