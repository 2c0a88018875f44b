//! How a call went, for policies that learn: read where the call ends, in its trailers.

use http::HeaderMap;
use tonic::Code;

use crate::balance::Outcome;

/// What the trailers (or, of an answer without a body, the headers) say of the instance.
///
/// Codes by which an instance says that it could not serve are failures; those that speak of the request are not, and
/// an answer without a code never came to its end.
pub(crate) fn of(trailers: &HeaderMap) -> Outcome {
    let Some(code) = trailers.get("grpc-status") else { return Outcome::Failure };
    match Code::from_bytes(code.as_bytes()) {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Outcome::Failure,
        _ => Outcome::Success,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_speaks_of_the_request_is_no_failure_of_the_instance() {
        let said = |code: &'static str| {
            of(&HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static(code),
            )]))
        };
        for fine in ["0", "1", "3", "5", "6", "7", "9", "10", "11", "12", "16"] {
            assert_eq!(said(fine), Outcome::Success, "{fine}");
        }
        for failed in ["2", "4", "8", "13", "14", "15", "no number"] {
            assert_eq!(said(failed), Outcome::Failure, "{failed}");
        }
        assert_eq!(of(&HeaderMap::new()), Outcome::Failure);
    }
}
