//! Responses, in the bytes that clients read.
//!
//! Existing clients want an empty reason phrase, `Content-Length` in this spelling, none of it with a status of 204, and
//! no character beyond ASCII.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use serde::Serialize;

use super::action::Failure;
use crate::json;

/// A whole response.
pub type Response = hyper::Response<Whole>;

/// A body that is all there, so that its length is.
#[derive(Debug)]
pub struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

fn response(status: u16, body: Option<Vec<u8>>) -> Response {
    let mut response = hyper::Response::new(Whole(body.map(Bytes::from)));
    *response.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let empty = const { ReasonPhrase::from_static(b"") };
    response.extensions_mut().insert(empty);
    response
}

/// It is done, and there is nothing to say.
pub fn done() -> Response {
    response(204, None)
}

/// It is done, and this is to say.
pub fn json(value: &impl Serialize) -> Response {
    typed(200, json::ascii(value), "application/json")
}

/// Text for Prometheus.
pub fn metrics(text: String) -> Response {
    typed(200, text.into_bytes(), "text/plain; version=0.0.4")
}

/// It cannot be done, and these are the reasons.
pub fn failure(failure: &Failure) -> Response {
    let mut response = typed(
        failure.status,
        json::ascii(&failure.chain),
        "application/json",
    );
    if let Some(method) = failure.allow {
        let value = HeaderValue::from_static(method);
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// The status of the response that hyper makes by itself when it cannot read a request. None, if `bytes` begin no such
/// response.
pub fn status_of(bytes: &[u8]) -> Option<u16> {
    let status = std::str::from_utf8(bytes.get(9..12)?).ok()?;
    // `100 Continue` is not among them.
    let refused = bytes.starts_with(b"HTTP/1.") && status.starts_with(['4', '5']);
    status.parse().ok().filter(|_| refused)
}

/// A whole response to a request that could not be read, in the form that clients read.
pub fn unread(status: u16, reason: &str) -> Vec<u8> {
    let body = json::ascii(&[reason]);
    let length = body.len();
    let mut text = format!(
        "HTTP/1.1 {status} \r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    text.extend(body);
    text
}

fn typed(status: u16, body: Vec<u8>, content_type: &'static str) -> Response {
    let mut response = response(status, Some(body));
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}
