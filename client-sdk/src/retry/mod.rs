//! Sending a request again, to another instance, where that does no harm.
//!
//! | a request | is sent again |
//! |---|---|
//! | that certainly never left | always, at no cost, as often as there are instances |
//! | that was answered, before anything else, with a code of its method's rule (default `UNAVAILABLE`) | if budget, attempts and another instance are left |
//! | whose connection broke, or that was reset, with no answer | the same, if its method is idempotent: it may have been processed |
//! | that has no answer within the per-try timeout | the same, if its method is idempotent |
//! | of which anything but a bare status was answered | never |
//!
//! Only what the channel still has in full is sent again (`ChannelBuilder::replay_limit`). Retries go to another instance, chosen
//! as any request is, without replacement; an instance that failed gets the request again only on a connection that was
//! opened since. If all had it, if the server forbids it (`grpc-retry-pushback-ms`), if the call's deadline would pass or
//! the budget is spent, the caller gets the last real answer or error. The deadline is one for all attempts, and each is told what
//! is left of it.
//!
//! | file | what it owns |
//! |---|---|
//! | `settings` | [`Retries`], [`Rule`]: what may be sent again, by method |
//! | `budget` | [`RetryBudget`]: how much of it there may be |
//! | `plan` | pure: what one request may still do |
//! | `pushback` | a server's word on another attempt |
//! | `quantile` | latencies of late, for hedging |
//! | `retryable` | what the tower layer has to be told |
//! | `run` | the attempts of one request |
//!
//! After gRFC A6 (client retries and hedging) and Finagle's retry budgets. Unlike A6, a broken connection alone is no reason
//! to send a call again that is not idempotent, and a retry never goes to the instance that just failed. Keeps C2 in that
//! every attempt is chosen by the newest routes.

mod budget;
mod plan;
mod pushback;
mod quantile;
mod retryable;
mod run;
mod settings;

pub use budget::RetryBudget;
pub(crate) use plan::{Failure, Plan};
pub use pushback::Pushback;
pub use retryable::{Again, Retryable};
pub(crate) use run::{Attempted, Given, NotTaken, Sender, run};
pub use settings::{Retries, RetriesError, Rule};
