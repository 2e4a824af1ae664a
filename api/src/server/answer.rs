//! From a request that has arrived to its response.

use hyper::http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::action::{Action, Failure, read_action};
use super::body::Held;
use super::response::{self, Response};
use super::{Shared, metrics};
use crate::control::{
    ENDED, Promptness, Refusal, RefusalKind, Reply, Request, Response as Outcome,
};
use crate::wire::{EventReport, Migration, Ping, Progress, VmInfo};

/// Does what a client asks for, and says what has come of it.
pub async fn answer(head: &Parts, body: Held, shared: &Shared) -> Response {
    let uri = &head.uri;
    let action = read_action(head.method.as_str(), uri.path(), uri.query(), body.bytes());
    // Waiting for the owner takes no memory of others.
    drop(body);
    let response = match action {
        Err(failure) => Err(failure),
        Ok(Action::Ping) => Ok(response::json(&Ping::here())),
        Ok(Action::Metrics) => all_metrics(shared).await,
        Ok(Action::Events { after, wait }) => {
            let deadline = Instant::now() + wait;
            events(after, deadline, shared).await
        }
        Ok(Action::Ask(request)) => ask(request, shared).await.map(|outcome| said(&outcome)),
    };
    response.unwrap_or_else(|failure| response::failure(&failure))
}

fn said(outcome: &Outcome) -> Response {
    match outcome {
        Outcome::Done => response::done(),
        Outcome::Info(info) => response::json(&VmInfo::from(&**info)),
        Outcome::Counters(counters) => response::json(counters),
        Outcome::Migration(progress) => response::json(&Migration::from(&**progress)),
        Outcome::Progress(progress) => response::json(&Progress::from(&**progress)),
    }
}

/// Hands a request to the owner of the virtual machine and waits for the answer.
async fn ask(request: Request, shared: &Shared) -> Result<Outcome, Failure> {
    let permit = permit(request.promptness(), shared).await?;
    let (sender, receiver) = oneshot::channel();
    let reply = Reply::new(move |answer| {
        drop(permit);
        // A client that has left needs no answer.
        let _ = sender.send(answer);
    });
    shared.control.submit(request, reply);
    let answer = receiver
        .await
        .unwrap_or_else(|_| Err(Refusal::new(RefusalKind::Failed, ENDED)));
    answer.map_err(Failure::from)
}

/// A place among the requests that the owner has not answered. It is given back with the answer, and not when the client
/// leaves: what it asked for goes on.
async fn permit(promptness: Promptness, shared: &Shared) -> Result<OwnedSemaphorePermit, Failure> {
    let permit = match promptness {
        // One comes free at once.
        Promptness::AtOnce => shared.prompt.clone().acquire_owned().await.ok(),
        Promptness::WhenDone => shared.unanswered.clone().try_acquire_owned().ok(),
    };
    permit.ok_or_else(|| Failure::new(503, "too many requests wait for an answer: try again"))
}

async fn all_metrics(shared: &Shared) -> Result<Response, Failure> {
    let info = match ask(Request::Info, shared).await {
        Ok(Outcome::Info(info)) => Some(info),
        Ok(_) => None,
        Err(failure) if failure.status == 404 => None,
        Err(failure) => return Err(failure),
    };
    let counters = match ask(Request::Counters, shared).await {
        Ok(Outcome::Counters(counters)) => counters,
        Ok(_) => Default::default(),
        Err(failure) if failure.status == 404 => Default::default(),
        Err(failure) => return Err(failure),
    };
    Ok(response::metrics(metrics::text(info.as_deref(), &counters)))
}

async fn events(after: u64, deadline: Instant, shared: &Shared) -> Result<Response, Failure> {
    let Ok(_permit) = shared.watchers.try_acquire() else {
        return Err(Failure::new(503, "too many clients wait for events"));
    };
    let mut news = shared.events.watch();
    let mut stop = shared.stop.subscribe();
    let waiting = async {
        loop {
            news.mark_unchanged();
            let events = shared.events.after(after);
            // The log lives at least as long as this.
            if !events.is_empty() || news.changed().await.is_err() {
                return events;
            }
        }
    };
    let waiting = std::pin::pin!(tokio::time::timeout_at(deadline, waiting));
    let stopped = std::pin::pin!(stop.wait_for(|stop| *stop));
    let events = first(waiting, stopped).await.unwrap_or_default();
    let reports: Vec<EventReport> = events.iter().map(|event| (&**event).into()).collect();
    Ok(response::json(&reports))
}

/// What `wanted` comes to, unless `end` or an error comes first.
async fn first<T, E>(
    mut wanted: std::pin::Pin<&mut impl Future<Output = Result<T, E>>>,
    mut end: std::pin::Pin<&mut impl Future>,
) -> Option<T> {
    use std::task::Poll;
    std::future::poll_fn(|context| match wanted.as_mut().poll(context) {
        Poll::Ready(outcome) => Poll::Ready(outcome.ok()),
        Poll::Pending => end.as_mut().poll(context).map(|_| None),
    })
    .await
}
