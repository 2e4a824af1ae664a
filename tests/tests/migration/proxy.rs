//! A link between two Ferrys, as slow and as bad as a test wants it to be.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Which way something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToReceiver,
    ToSender,
}

/// What goes wrong with the bytes on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit of the byte is another one.
    Flip,
    /// These bytes come before it.
    Insert(Vec<u8>),
    /// It and everything behind it is lost, and the connection is closed.
    Cut,
}

struct Spoil {
    way: Way,
    at: u64,
    damage: Damage,
}

/// Stands between a sender and a receiver at a unix socket.
pub struct Proxy {
    url: String,
    link: Arc<Link>,
    _directory: TempDir,
}

#[derive(Default)]
struct Link {
    /// Bytes a second in each direction; 0: as fast as it goes.
    rate: AtomicU64,
    held: [AtomicBool; 2],
    over: AtomicBool,
    /// What went each way, on all connections.
    recorded: Mutex<[Vec<u8>; 2]>,
    /// Bytes that went each way.
    passed: [AtomicU64; 2],
    spoil: Mutex<Option<Spoil>>,
}

impl Proxy {
    /// Listens for senders, and connects to the receiver at `url` for each.
    pub fn to(url: &str) -> Proxy {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("link");
        let listener = UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        let target = PathBuf::from(url.strip_prefix("unix:").expect("a unix socket"));
        let link = Arc::new(Link::default());
        let shared = Arc::clone(&link);
        thread::spawn(move || serve(&listener, &target, &shared));
        Proxy {
            url: format!("unix:{}", path.display()),
            link,
            _directory: directory,
        }
    }

    /// Where the sender is to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Lets so many bytes a second through.
    pub fn slow(self, rate: u64) -> Self {
        self.set_rate(rate);
        self
    }

    /// Lets so many bytes a second through from now on; 0: as many as there are.
    pub fn set_rate(&self, rate: u64) {
        self.link.rate.store(rate, Ordering::SeqCst);
    }

    /// Lets nothing through in this direction.
    pub fn hold(&self, way: Way) {
        self.link.held[way as usize].store(true, Ordering::SeqCst);
    }

    /// Spoils what is on its way, once: byte number `at` of this direction.
    pub fn damaged(self, way: Way, at: u64, damage: Damage) -> Self {
        *lock(&self.link.spoil) = Some(Spoil { way, at, damage });
        self
    }

    /// What was said so far in this direction.
    pub fn recorded(&self, way: Way) -> Vec<u8> {
        lock(&self.link.recorded)[way as usize].clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.link.over.store(true, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &UnixListener, target: &PathBuf, link: &Arc<Link>) {
    while !link.is_over() {
        match listener.accept() {
            Ok((client, _)) => {
                // Nobody is there: the client sees that its connection is closed.
                let Ok(server) = UnixStream::connect(target) else {
                    continue;
                };
                let both = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
                pass(both(&client), both(&server), Way::ToReceiver, link);
                pass(server, client, Way::ToSender, link);
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn pass(from: UnixStream, to: UnixStream, way: Way, link: &Arc<Link>) {
    let link = Arc::clone(link);
    thread::spawn(move || {
        let _ = copy(&from, &to, way, &link);
        let _ = to.shutdown(Shutdown::Write);
        if link.is_over() {
            let _ = from.shutdown(Shutdown::Both);
        }
    });
}

fn copy(mut from: &UnixStream, mut to: &UnixStream, way: Way, link: &Link) -> std::io::Result<()> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(Duration::from_millis(10)))?;
    let mut buffer = vec![0; 64 << 10];
    while !link.is_over() {
        if link.held[way as usize].load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
            continue;
        }
        let rate = link.rate.load(Ordering::SeqCst);
        let most = match rate {
            0 => buffer.len(),
            _ => (rate as usize / 100).clamp(1, buffer.len()),
        };
        let read = match from.read(&mut buffer[..most]) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::TimedOut
                        | std::io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        // Held meanwhile: what was read waits.
        while link.held[way as usize].load(Ordering::SeqCst) && !link.is_over() {
            thread::sleep(Duration::from_millis(2));
        }
        let (data, verdict) = link.spoil(way, &buffer[..read]);
        lock(&link.recorded)[way as usize].extend_from_slice(&data);
        to.write_all(&data)?;
        if verdict == Verdict::Close {
            from.shutdown(Shutdown::Both)?;
            to.shutdown(Shutdown::Both)?;
            return Ok(());
        }
        if rate > 0 {
            thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    GoOn,
    Close,
}

impl Link {
    /// What really arrives of some bytes.
    fn spoil(&self, way: Way, data: &[u8]) -> (Vec<u8>, Verdict) {
        let mut data = data.to_vec();
        let from = self.passed[way as usize].fetch_add(data.len() as u64, Ordering::SeqCst);
        let here = |spoil: &mut Spoil| {
            spoil.way == way && (from..from + data.len() as u64).contains(&spoil.at)
        };
        let Some(spoil) = lock(&self.spoil).take_if(here) else {
            return (data, Verdict::GoOn);
        };
        let at = (spoil.at - from) as usize;
        match spoil.damage {
            Damage::Flip => data[at] ^= 0x10,
            Damage::Insert(bytes) => drop(data.splice(at..at, bytes)),
            Damage::Cut => {
                data.truncate(at);
                return (data, Verdict::Close);
            }
        }
        (data, Verdict::GoOn)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}
