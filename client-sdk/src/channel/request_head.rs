//! The head of a request, as HTTP/2 has it.
//!
//! Owns what a caller's headers may not say in HTTP/2, where an attempt goes, and the timeout that the gRPC protocol writes
//! into a header.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{CONNECTION, CONTENT_LENGTH, TE},
    request,
    uri::PathAndQuery,
};
use http_body::SizeHint;

use super::connection::Origin;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Makes a caller's head one of HTTP/2: what speaks of a connection goes (RFC 9113, 8.2.2), and the length of a body is said
/// where it is known.
pub(super) fn prepare(head: &mut request::Parts, body: &SizeHint) {
    head.version = http::Version::HTTP_2;
    // They are for whoever stands before the channel; copies of them for each attempt would go nowhere.
    head.extensions = http::Extensions::new();
    if head.headers.iter().any(|(name, value)| speaks_of_connection(name, value)) {
        strip(&mut head.headers);
    }
    if let Some(length) = body.exact()
        && (length > 0 || head.method == Method::POST)
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
}

/// The head of one attempt.
pub(super) fn towards(origin: &Origin, head: &request::Parts) -> Request<()> {
    let mut head = head.clone();
    // An authority that the caller set (`with_origin`) is kept.
    if head.uri.authority().is_none() {
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.scheme = Some(origin.scheme.clone());
        parts.authority = Some(origin.authority.clone());
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(parts).expect("scheme, authority and path are all there");
    }
    Request::from_parts(head, ())
}

/// Tells the peer how many attempts there were before this one (gRFC A6), and how much is left of the caller's timeout.
pub(super) fn tell_attempt(headers: &mut HeaderMap, earlier: u32, left: Option<(Duration, Duration)>) {
    if earlier > 0 {
        headers.insert(PREVIOUS_ATTEMPTS, earlier.into());
    }
    // What passed on the way to a first attempt is hardly worth saying.
    if let Some((timeout, left)) = left
        && (earlier > 0 || timeout.saturating_sub(left) >= Duration::from_millis(1))
    {
        headers.insert(TIMEOUT, timeout_value(left));
    }
}

/// As exactly as eight digits are. Nothing left is the least that can be said.
fn timeout_value(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let written = match (left.as_micros(), left.as_millis()) {
        (micros @ ..=MOST, _) => format!("{}u", micros.max(1)),
        (_, millis @ ..=MOST) => format!("{millis}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MOST)),
    };
    HeaderValue::try_from(written).expect("digits and a letter")
}

/// The timeout of a call, as the gRPC protocol writes it: at most eight digits and a unit. What is written otherwise is
/// left to the server to refuse.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn speaks_of_connection(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => true,
        "te" => value != "trailers",
        _ => false,
    }
}

/// Also what `connection` names, which is as much of a connection.
fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|names| names.split(',')).filter_map(|name| name.trim().parse().ok());
    let mut gone: Vec<HeaderName> = named.collect();
    let spoken = headers.iter().filter(|(name, value)| speaks_of_connection(name, value));
    gone.extend(spoken.map(|(name, _)| name.clone()));
    // To say that trailers are understood is the one thing that may be said of them.
    gone.retain(|name| name != TE || headers.get_all(TE).iter().any(|te| te != "trailers"));
    for name in gone {
        tracing::debug!(%name, "HTTP/2 has no such header; it is not sent");
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(said: &[(&'static str, &'static str)]) -> HeaderMap {
        let said =
            said.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        said.collect()
    }

    #[test]
    fn what_speaks_of_a_connection_is_not_sent() {
        let prepared = |said: &[_]| {
            let mut head = Request::new(()).into_parts().0;
            head.headers = headers(said);
            prepare(&mut head, &SizeHint::default());
            head.headers
        };
        let fine = [("te", "trailers"), ("content-type", "application/grpc"), ("x", "y")];
        assert_eq!(prepared(&fine), headers(&fine));
        let said = [
            ("te", "trailers"),
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x", "y"),
        ];
        assert_eq!(prepared(&said), headers(&[("te", "trailers"), ("x", "y")]));
        assert_eq!(prepared(&[("te", "gzip"), ("x", "y")]), headers(&[("x", "y")]));
    }

    #[test]
    fn a_length_that_is_known_is_said() {
        let length = |method: Method, body: SizeHint, said: &[_]| {
            let mut head = Request::builder().method(method).body(()).expect("valid").into_parts().0;
            head.headers = headers(said);
            prepare(&mut head, &body);
            head.headers.get(CONTENT_LENGTH).map(|length| length.to_str().expect("digits").to_owned())
        };
        assert_eq!(length(Method::POST, SizeHint::default(), &[]), None);
        assert_eq!(length(Method::POST, SizeHint::with_exact(7), &[]).as_deref(), Some("7"));
        assert_eq!(length(Method::POST, SizeHint::with_exact(0), &[]).as_deref(), Some("0"));
        assert_eq!(length(Method::GET, SizeHint::with_exact(0), &[]), None);
        let said = [("content-length", "8")];
        assert_eq!(length(Method::POST, SizeHint::with_exact(7), &said).as_deref(), Some("8"));
    }

    #[test]
    fn timeouts_are_read_as_the_grpc_protocol_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header's value"));
            grpc_timeout(&headers)
        };
        for (text, millis) in
            [("2H", 7_200_000), ("3M", 180_000), ("4S", 4000), ("5m", 5), ("99999999m", 99_999_999)]
        {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("8n"), Some(Duration::from_nanos(8)));
        for text in ["", "S", "5", "5s", "-5S", "123456789S", "5 S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn an_attempt_says_what_is_left_and_how_many_there_were() {
        for (left, written) in [
            (Duration::ZERO, "1u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(timeout_value(left), written);
        }
        let said = |earlier, passed| {
            let mut said = headers(&[("grpc-timeout", "5S")]);
            let timeout = Duration::from_secs(5);
            tell_attempt(&mut said, earlier, Some((timeout, timeout.saturating_sub(passed))));
            said
        };
        let (soon, later) = (Duration::from_micros(999), Duration::from_secs(1));
        assert_eq!(said(0, soon), headers(&[("grpc-timeout", "5S")]));
        assert_eq!(said(0, later), headers(&[("grpc-timeout", "4000000u")]));
        let second = [("grpc-timeout", "4999001u"), ("grpc-previous-rpc-attempts", "1")];
        assert_eq!(said(1, soon), headers(&second));
        let mut untimed = HeaderMap::new();
        tell_attempt(&mut untimed, 0, None);
        assert!(untimed.is_empty());
    }
}
