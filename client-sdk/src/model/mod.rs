//! The nouns of the SDK. Owns no behaviour beyond parsing and building.

mod address;
mod change;
mod endpoint;
mod instance;
mod selector;

pub use address::{Address, AddressError, AddressKind};
pub use change::{Change, InstanceList};
pub use endpoint::{Endpoint, EndpointBuilder};
pub use instance::{Instance, InstanceBuilder, Locality, Status};
pub use selector::Selector;
