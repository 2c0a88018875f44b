//! What a service is made for.

use std::sync::Arc;

use crate::model::{Address, Instance};

/// What is handed to whatever makes services: the instance's [`Address`], or the whole [`Instance`].
pub trait Target: sealed::Of + Send + 'static {}

impl Target for Address {}

impl Target for Arc<Instance> {}

pub(super) mod sealed {
    use super::{Address, Arc, Instance};

    pub trait Of {
        fn of(instance: &Arc<Instance>) -> Self;
    }

    impl Of for Address {
        fn of(instance: &Arc<Instance>) -> Self {
            instance.address.clone()
        }
    }

    impl Of for Arc<Instance> {
        fn of(instance: &Arc<Instance>) -> Self {
            Self::clone(instance)
        }
    }
}
