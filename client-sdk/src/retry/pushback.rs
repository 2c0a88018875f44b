//! What a server says about another attempt: the header `grpc-retry-pushback-ms` (gRFC A6).

use std::time::Duration;

use http::HeaderMap;

const HEADER: &str = "grpc-retry-pushback-ms";

/// A server's word on another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Wait exactly this long.
    After(Duration),
    /// Do not try again: the number is negative, or is none.
    Never,
}

impl Pushback {
    /// What the server said, if it said anything.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(HEADER)?;
        // As large as gRFC A6 has it; a larger number is none.
        let millis = value.to_str().ok().and_then(|text| text.parse::<i32>().ok());
        let millis = millis.and_then(|millis| u64::try_from(millis).ok());
        Some(millis.map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_waited_for_and_anything_else_means_never() {
        let said = |text: &'static str| {
            Pushback::of(&HeaderMap::from_iter([(
                http::HeaderName::from_static(HEADER),
                http::HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(said("0"), Some(Pushback::After(Duration::ZERO)));
        assert_eq!(said("1500"), Some(Pushback::After(Duration::from_millis(1500))));
        for never in ["-1", "", "soon", "1.5", " 5", "99999999999"] {
            assert_eq!(said(never), Some(Pushback::Never), "{never}");
        }
        assert_eq!(Pushback::of(&HeaderMap::new()), None);
    }
}
