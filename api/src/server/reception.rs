//! Whether clients are taken in, and on which socket: a process that takes another one's place goes on with its socket, on which nobody is
//! refused meanwhile.
//!
//! ```text
//!             pause             leave
//!   Open ⇄───────────▶ Paused ─────────▶ Left: the socket is the other process's
//!    │ ▲   resume
//!    └─┘ move_to: another socket, in place of this one
//! ```
//!
//! Connections that are there stay, until their clients have had enough or the server ends; one that waits for its client's first or next
//! request is closed when the socket is left, so that the client connects again, and finds the other process.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::sync::mpsc as sync;
use std::task::Poll;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::socket::{LentSocket, ServerSocket};
use super::{Shared, accept, take_in};

/// How long the server's thread may take to follow. It never waits for anybody.
const LIMIT: Duration = Duration::from_secs(5);

/// Says whether clients are taken in, from any thread.
#[derive(Clone, Debug)]
pub struct Reception {
    orders: UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    /// Answered when nobody is taken in any more.
    Pause(sync::Sender<()>),
    Resume,
    /// Answered when the file is left alone, whatever comes.
    Leave(sync::Sender<()>),
    MoveTo(LentSocket),
    Lend(sync::Sender<io::Result<LentSocket>>),
    /// The last one: the socket is closed.
    End,
}

impl Reception {
    /// Takes nobody in any more, as long as that is held. Whoever connects waits.
    pub fn pause(&self) -> Pausing {
        let (done, paused) = sync::channel();
        self.say(Order::Pause(done));
        Pausing {
            reception: self.clone(),
            paused,
            has_left: false,
        }
    }

    /// Takes clients in on a socket that was another process's. The one before is closed.
    pub fn move_to(&self, socket: LentSocket) {
        self.say(Order::MoveTo(socket));
    }

    /// The socket, for another process.
    ///
    /// # Errors
    /// It cannot be copied, or the server has ended.
    pub fn lend(&self) -> io::Result<LentSocket> {
        let (sender, lent) = sync::channel();
        self.say(Order::Lend(sender));
        lent.recv_timeout(LIMIT).map_err(io::Error::other)?
    }

    /// Takes nobody in any more, for good, once all that was said before is done: a socket that was left stays where it is.
    pub(super) fn end(&self) {
        self.say(Order::End);
    }

    fn say(&self, order: Order) {
        // A server that has ended takes nobody in.
        let _ = self.orders.send(order);
    }
}

/// While nobody is taken in. Dropped, it takes clients in again, unless the socket has been left.
#[derive(Debug)]
pub struct Pausing {
    reception: Reception,
    paused: sync::Receiver<()>,
    has_left: bool,
}

impl Pausing {
    /// Waits until nobody is taken in any more: no longer than the server's thread needs to notice.
    pub fn done(&self) {
        let _ = self.paused.recv_timeout(LIMIT);
    }

    /// The socket is another process's now, and its file too.
    pub fn leave(mut self) {
        let (done, left) = sync::channel();
        self.reception.say(Order::Leave(done));
        let _ = left.recv_timeout(LIMIT);
        self.has_left = true;
    }
}

impl Drop for Pausing {
    fn drop(&mut self) {
        if !self.has_left {
            self.reception.say(Order::Resume);
        }
    }
}

/// The server's end of a [`Reception`].
pub(super) struct Orders {
    first: StdListener,
    receiver: UnboundedReceiver<Order>,
}

pub(super) fn new(socket: &ServerSocket) -> io::Result<(Reception, Orders)> {
    let first = socket.listener()?;
    let (orders, receiver) = unbounded_channel();
    Ok((Reception { orders }, Orders { first, receiver }))
}

/// Takes clients in as it is ordered to, until it is to end. Then it closes the socket.
pub(super) async fn run(socket: ServerSocket, orders: Orders, shared: Rc<Shared>) {
    let Orders {
        first,
        mut receiver,
    } = orders;
    let mut desk = match UnixListener::from_std(first) {
        Ok(listener) => Desk {
            socket,
            listener: Rc::new(listener),
            accepting: None,
            shared,
        },
        Err(error) => return complain(&error),
    };
    desk.open();
    while let Some(order) = receiver.recv().await
        && desk.follow(order).await.is_continue()
    {}
}

fn complain(error: &io::Error) {
    tracing::error!("the API's socket cannot be waited for: {error}");
}

/// Where clients are taken in.
struct Desk {
    socket: ServerSocket,
    listener: Rc<UnixListener>,
    /// While it is open.
    accepting: Option<JoinHandle<()>>,
    shared: Rc<Shared>,
}

impl Desk {
    async fn follow(&mut self, order: Order) -> ControlFlow<()> {
        match order {
            Order::Pause(done) => {
                self.close().await;
                // Who does not wait need not know.
                let _ = done.send(());
            }
            Order::Resume => self.open(),
            Order::Leave(done) => {
                self.close().await;
                self.socket.leave();
                self.shared.table.close_idle();
                let _ = done.send(());
            }
            Order::MoveTo(socket) => self.move_to(socket).await,
            Order::Lend(sender) => {
                let _ = sender.send(self.socket.lend());
            }
            Order::End => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn open(&mut self) {
        let accept =
            || tokio::task::spawn_local(accept(self.listener.clone(), self.shared.clone()));
        self.accepting.get_or_insert_with(accept);
    }

    async fn close(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
    }

    async fn move_to(&mut self, socket: LentSocket) {
        let socket = ServerSocket::of_another(socket);
        let listener = socket.listener().and_then(UnixListener::from_std);
        let listener = match listener {
            Ok(listener) => Rc::new(listener),
            Err(error) => return complain(&error),
        };
        self.close().await;
        self.take_those_in_who_wait().await;
        self.socket = socket;
        self.listener = listener;
        self.open();
    }

    /// Of a socket that is about to be closed.
    async fn take_those_in_who_wait(&self) {
        std::future::poll_fn(|context| {
            while let Poll::Ready(Ok((stream, _))) = self.listener.poll_accept(context) {
                take_in(stream, &self.shared);
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}
