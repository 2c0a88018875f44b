//! What the tower layer has to be told of requests and answers of any type before it can send one again.

use std::{error::Error, time::Duration};

/// Knows how requests of one type are sent again, and which answers are worth it.
///
/// ```
/// use std::error::Error;
/// use client_sdk::retry::{Again, Retryable};
/// struct Gets;
/// impl Retryable<http::Request<()>, http::Response<String>> for Gets {
///     fn copy(&self, request: &http::Request<()>) -> Option<http::Request<()>> {
///         (request.method() == http::Method::GET).then(|| request.clone())
///     }
///     fn judge(&self, answer: Result<&http::Response<String>, &(dyn Error + Send + Sync + 'static)>) -> Again {
///         match answer {
///             Ok(response) if response.status() != http::StatusCode::SERVICE_UNAVAILABLE => Again::No,
///             _ => Again::Yes,
///         }
///     }
/// }
/// ```
pub trait Retryable<Req, Res>: Send + Sync + 'static {
    /// The same request once more, for a further attempt. `None`: it cannot be sent again. Called once before each attempt
    /// that may be followed by another.
    fn copy(&self, request: &Req) -> Option<Req>;

    /// Whether such an answer, or such an error of the service, is worth another attempt.
    fn judge(&self, answer: Result<&Res, &(dyn Error + Send + Sync + 'static)>) -> Again;

    /// Whether processing this request twice is no worse than once: then it may be timed out and hedged. Default: what the
    /// default rule of the settings says.
    fn is_idempotent(&self, request: &Req) -> bool {
        let _ = request;
        false
    }
}

/// Whether to send a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Again {
    /// No: the caller gets this answer.
    No,
    /// Yes, when the settings say so.
    Yes,
    /// Yes, after so long.
    After(Duration),
}
