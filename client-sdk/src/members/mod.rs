//! The instances of one endpoint, as something that requests go to: what the channel and the tower layer have in common.
//!
//! Owns who is kept connected, who may be chosen, and how a request finds one and waits for one. Does not own what a
//! connection is (the trait `Member` is all it knows of one) nor what a request is.
//!
//! ```text
//!   view ---> driver ---> a member each (orders: connect, rest, drain)
//!               |              |
//!               | routes       | state
//!               v              v
//!   request -> search -----> a member ---> sent by whoever searched
//!               ^               |
//!               +-- not taken --+
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `member` | what the others know of a connection |
//! | `driver` | the view, the members, who is connected ahead, and the routes that it publishes |
//! | `aperture` | how many instances are connected, where that is decided by the demand |
//! | `lay` | who of them is picked from, after filters, health and shapers |
//! | `routes`, `standing` | which instances a request may go to, and why not to the others |
//! | `chooser` | a policy or somebody's `LoadBalance`, without their types |
//! | `search`, `tried` | one request's way to a member |
//! | `room` | where requests wait while whoever is connected is busy |
//! | `gate` | how many requests an instance may have at once, and the one that is its probe |
//! | `outliers` | who is ejected: the detector, as the driver uses it |
//! | `shared` | what requests and the driver share: the routes, the queue |
//! | `ongoing`, `meters` | a request that an instance has, and what is counted |
//! | `settings` | what all of it may be told |
//! | `error`, `snapshot` | what a caller is told |
//!
//! Keeps C2 (`routes`: what is known to be gone, draining, down or of weight 0 gets no new request), C1 (`driver`: a
//! failing discovery changes nothing but the error that callers are shown), and *make before break*: a member ends only
//! after what is in flight on it.

mod aperture;
mod chooser;
mod driver;
mod error;
mod gate;
mod lay;
mod member;
mod meters;
mod ongoing;
mod outliers;
mod room;
mod routes;
mod search;
mod settings;
mod shared;
mod snapshot;
mod standing;
mod tried;

pub use crate::sizing::SizeChange;
pub use aperture::{Aperture, ApertureBuilder, ApertureSnapshot};
pub(crate) use chooser::Chooser;
pub(crate) use driver::Driver;
pub use error::RouteError;
pub(crate) use error::{SharedError, innermost};
pub use member::ConnectionState;
pub(crate) use member::{Member, Open, Order};
pub(crate) use meters::Meters;
pub(crate) use ongoing::{Blame, Ongoing};
pub(crate) use room::Room;
pub(crate) use search::{Deadline, Search, within};
pub use settings::Overflow;
pub(crate) use settings::Settings;
pub(crate) use shared::Shared;
pub use snapshot::{InstanceSnapshot, Snapshot};
pub use standing::Standing;
pub(crate) use tried::Offered;
