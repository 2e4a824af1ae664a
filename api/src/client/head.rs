//! The head of an answer: status and length, and nothing else that Ferry's client needs.

use super::error::WireError;

/// The longest head that is taken, in bytes.
pub const HEAD_MOST: usize = 16 << 10;
/// The most headers that are taken.
const HEADERS_MOST: usize = 64;

/// What the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The HTTP status.
    pub status: u16,
    /// Bytes of the head itself, with the empty line.
    pub length: usize,
    /// Bytes of the body.
    pub body: u64,
}

impl Head {
    /// Looks at what has come so far; `None` if the head is not complete.
    pub fn parse(bytes: &[u8]) -> Result<Option<Head>, WireError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MOST];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(bytes).map_err(WireError::NotHttp)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial if bytes.len() >= HEAD_MOST => {
                return Err(WireError::LongHead { most: HEAD_MOST });
            }
            httparse::Status::Partial => return Ok(None),
        };
        let status = response.code.unwrap_or_default();
        let body = match status {
            204 => 0,
            _ => body_length(response.headers)?,
        };
        Ok(Some(Head {
            status,
            length,
            body,
        }))
    }
}

/// The one `Content-Length`. Ferry sends no body without it, so chunks are none of the client's business.
fn body_length(headers: &[httparse::Header<'_>]) -> Result<u64, WireError> {
    let mut lengths = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("content-length"));
    match (lengths.next(), lengths.next()) {
        (Some(only), None) => decimal(only.value).ok_or(WireError::NoLength),
        _ => Err(WireError::NoLength),
    }
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    // `parse` would take a sign.
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_comes_the_head_is_within_it(
            start in prop_oneof![Just(""), Just("HTTP/1.1 200 \r\n"), Just("HTTP/1.1 500 \r\nContent-Length: ")],
            rest in prop_oneof!["[0-9]{0,20}(\r\n){0,2}", "\\PC{0,40}"],
            bytes in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let all = [start.as_bytes(), rest.as_bytes(), &bytes].concat();
            if let Ok(Some(head)) = Head::parse(&all) {
                prop_assert!(head.length <= all.len());
            }
        }
    }

    #[test]
    fn an_empty_reason_phrase_is_fine() {
        let bytes = b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}";
        let head = Head::parse(bytes).unwrap().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.body, 2);
        assert_eq!(&bytes[head.length..], b"{}");
    }

    #[test]
    fn no_prefix_of_a_head_is_a_head() {
        let bytes = b"HTTP/1.1 500 \r\nServer: x\r\nContent-Length: 12\r\n\r\n";
        for length in 0..bytes.len() {
            assert_eq!(Head::parse(&bytes[..length]).unwrap(), None, "{length}");
        }
    }

    #[test]
    fn only_204_goes_without_a_length() {
        let head = |text: &str| Head::parse(text.as_bytes());
        assert_eq!(head("HTTP/1.1 204 \r\n\r\n").unwrap().unwrap().body, 0);
        for text in [
            "HTTP/1.1 200 \r\n\r\n",
            "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: +2\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: \r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 99999999999999999999\r\n\r\n",
        ] {
            assert!(matches!(head(text), Err(WireError::NoLength)), "{text}");
        }
    }

    #[test]
    fn a_head_without_an_end_is_given_up() {
        let mut bytes = b"HTTP/1.1 200 \r\nX: ".to_vec();
        bytes.resize(HEAD_MOST, b'x');
        assert!(matches!(
            Head::parse(&bytes),
            Err(WireError::LongHead { .. })
        ));
    }
}
