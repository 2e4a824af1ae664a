//! One client's connection, from its first request to its end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::UnixStream;

use super::answer::answer;
use super::response::Response;
use super::stream::Stream;
use super::table::{Entry, Phase};
use super::{FIELDS_MOST, HEAD_MOST, Shared, body, response};

/// Serves a client until one of both has had enough.
pub async fn serve(stream: UnixStream, entry: Rc<Entry>, shared: Rc<Shared>) {
    // Also when this task is dropped.
    let _leave = Leave(&shared, &entry);
    let service = service_fn(|request| {
        // Not in the task, which begins later: the next read already depends on it.
        entry.enter_body();
        let (entry, shared) = (entry.clone(), shared.clone());
        async move { Ok::<_, Infallible>(exchange(request, &entry, &shared).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .title_case_headers(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_headers(FIELDS_MOST)
        .max_buf_size(HEAD_MOST);
    let stream = Stream::new(stream, entry.clone());
    let mut connection = builder.serve_connection(stream, service);
    let mut closed = pin!(entry.to_be_closed());
    let mut stop = shared.stop.subscribe();
    let mut stopped = pin!(async move { stop.wait_for(|stop| *stop).await.is_ok() });
    let mut stopping = false;

    let outcome = std::future::poll_fn(|context| {
        if closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !stopping && stopped.as_mut().poll(context).is_ready() {
            stopping = true;
            match entry.phase() {
                Phase::Idle | Phase::Head | Phase::Body => return Poll::Ready(Ok(())),
                Phase::Answering | Phase::Writing => Pin::new(&mut connection).graceful_shutdown(),
            }
        }
        Pin::new(&mut connection).poll(context)
    })
    .await;
    if let Err(error) = outcome {
        tracing::debug!("a client of the API: {error}");
        connection.into_parts().io.refuse_unread();
    }
}

struct Leave<'a>(&'a Shared, &'a Rc<Entry>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.table.remove(self.1);
    }
}

/// One request and its answer.
async fn exchange(request: hyper::Request<Incoming>, entry: &Entry, shared: &Shared) -> Response {
    let deadline = entry.since() + shared.limits.receive;
    let (head, mut incoming) = request.into_parts();
    let reading = body::read(&mut incoming, &shared.bodies, shared.limits.body);
    let mut reading = pin!(tokio::time::timeout_at(deadline, reading));
    let mut said_all = pin!(entry.said_all());
    let read = std::future::poll_fn(|context| match reading.as_mut().poll(context) {
        Poll::Ready(Ok(read)) => Poll::Ready(read),
        Poll::Ready(Err(_)) => Poll::Ready(Err(body::late())),
        // Whatever the client had sent before has just been read.
        Poll::Pending => said_all
            .as_mut()
            .poll(context)
            .map(|()| Err(body::cut_off())),
    })
    .await;
    entry.enter(Phase::Answering);
    let response = match read {
        Ok(body) => answer(&head, body, shared).await,
        Err(failure) => response::failure(&failure),
    };
    entry.enter(Phase::Writing);
    response
}
