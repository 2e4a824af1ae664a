//! A running guest.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferry_api::client::{Client, Limits};
use tempfile::TempDir;

use super::{DONE, Ended, Left, Patience, find, transcript};
use crate::lines::{Line, complete_lines};
use crate::process::Process;

/// Makes paths differ.
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// What Ferry writes to its standard error.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Line>>>);

impl Log {
    fn collect(&self, stderr: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Line(line));
            }
        })
    }

    fn lines(&self) -> Vec<Line> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A running virtual machine. Ends with a SIGKILL for Ferry when it is dropped.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    log: Log,
    collector: Option<thread::JoinHandle<()>>,
    serial: PathBuf,
    pub(super) patience: Patience,
    api: Option<Client>,
    directory: Arc<TempDir>,
    /// What the guest has said under Ferries before this one.
    earlier: Vec<u8>,
}

impl Guest {
    pub(super) fn new(
        mut process: Process,
        serial: PathBuf,
        patience: Patience,
        api: Option<PathBuf>,
        directory: Arc<TempDir>,
    ) -> Self {
        let log = Log::default();
        let collector = process
            .child()
            .stderr
            .take()
            .map(|stderr| log.collect(stderr));
        let limits = Limits {
            connect: patience.limit,
            silence: patience.limit,
            total: patience.limit,
        };
        Guest {
            process,
            log,
            collector,
            serial,
            patience,
            api: api.map(|socket| Client::new(socket, limits)),
            directory,
            earlier: Vec::new(),
        }
    }

    pub(super) fn with_earlier(mut self, earlier: Vec<u8>) -> Self {
        self.earlier = earlier;
        self
    }

    /// Ends Ferry with SIGKILL. What is left can be brought back from a snapshot.
    pub fn kill(mut self) -> Left {
        self.process.kill();
        self.left()
    }

    /// Waits for Ferry's end, which has to be one with status 0, as after a snapshot with `after: stop`.
    pub fn stopped(mut self) -> Left {
        self.wait_for_exit();
        self.left()
    }

    pub(super) fn wait_for_exit(&mut self) {
        let limit = self.patience.limit;
        let status = self.process.wait(limit);
        assert!(
            status.is_some_and(|status| status.success()),
            "Ferry has not ended well: {status:?}\n{}",
            self.transcript()
        );
    }

    /// Where other Ferries are started for this guest, which goes on here until it has moved: what it says there comes
    /// behind what it says here.
    pub fn beside(&self) -> Left {
        Left::new(
            self.earlier.clone(),
            self.serial.clone(),
            self.patience,
            Arc::clone(&self.directory),
        )
    }

    /// The file that the serial port leads to.
    pub fn serial_file(&self) -> &Path {
        &self.serial
    }

    /// A path beside the guest's other files at which nothing is.
    pub(super) fn new_path(&self, name: &str) -> PathBuf {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.directory.path().join(format!("{name}-{number}"))
    }

    /// A copy of the guest as it is now, in a snapshot that holds it, for when this guest has ended.
    pub fn copied(&self) -> Left {
        Left::new(
            self.said(),
            self.serial.clone(),
            self.patience,
            Arc::clone(&self.directory),
        )
    }

    fn left(self) -> Left {
        let left = self.copied();
        self.forget_serial();
        left
    }

    /// The next Ferry has the guest write to the same file.
    fn forget_serial(&self) {
        let _ = fs::remove_file(&self.serial);
    }

    /// Everything on the serial port so far, also under Ferries before this one.
    fn said(&self) -> Vec<u8> {
        let mut bytes = self.earlier.clone();
        bytes.extend(fs::read(&self.serial).unwrap_or_default());
        bytes
    }

    /// A client of its API. Panics unless [`Ferry::with_api`](super::Ferry::with_api) was asked for.
    pub fn api(&self) -> &Client {
        match &self.api {
            Some(client) => client,
            None => panic!("this Ferry serves no API"),
        }
    }

    /// Has the API do something, such as `vm.pause`. Panics if it refuses.
    pub fn put(&self, route: &str) {
        if let Err(error) = self.api().put(route, b"") {
            let reasons = error.chain().join(": ");
            panic!("{route}: {reasons}\n{}", self.transcript());
        }
    }

    /// Everything on the serial port so far.
    pub fn serial(&self) -> Vec<Line> {
        complete_lines(&String::from_utf8_lossy(&self.said()))
    }

    /// Everything in Ferry's log so far.
    pub fn log(&self) -> Vec<Line> {
        self.log.lines()
    }

    /// Waits for a line on the serial port that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> Line {
        self.wait_until(&format!("'{text}' on the serial port"), |guest| {
            find(&guest.serial(), text)
        })
    }

    /// Waits for `count` lines on the serial port that contain `text`.
    pub fn wait_for_count(&mut self, text: &str, count: usize) {
        self.wait_until(
            &format!("{count} times '{text}' on the serial port"),
            |guest| (guest.count(text) >= count).then_some(()),
        );
    }

    /// How many lines on the serial port contain `text` so far.
    pub fn count(&self, text: &str) -> usize {
        let serial = self.serial();
        serial.iter().filter(|line| line.0.contains(text)).count()
    }

    /// Waits until the guest says something that it has not begun to say yet. One that is done by then has gone on, too.
    pub fn goes_on(&mut self, text: &str) {
        let count = self.count(text) + 2;
        self.wait_until(
            &format!("{count} times '{text}' on the serial port"),
            |guest| (guest.count(text) >= count || guest.is_done()).then_some(()),
        );
    }

    fn is_done(&self) -> bool {
        find(&self.serial(), DONE).is_some()
    }

    /// Waits until a guest with `end=halt` is done, and ends its Ferry.
    pub fn finished(mut self) -> Ended {
        self.wait_for(DONE);
        self.put("vmm.shutdown");
        self.end().succeeded()
    }

    /// The guest is paused, and says nothing for a while.
    pub fn stands_still(&self, text: &str) {
        assert_eq!(self.state(), "Paused");
        // What it said last may still be on its way.
        let stands_still = || {
            let now = self.count(text);
            thread::sleep(Duration::from_millis(300));
            self.count(text) == now
        };
        assert!((0..10).any(|_| stands_still()), "the guest runs");
        assert!(stands_still(), "the guest runs again");
        assert_eq!(self.state(), "Paused");
    }

    /// Waits for a line in Ferry's log that contains `text`.
    pub fn wait_for_log(&mut self, text: &str) -> Line {
        self.wait_until(&format!("'{text}' in Ferry's log"), |guest| {
            find(&guest.log(), text)
        })
    }

    /// Waits for something that is neither; panics when it does not come, or Ferry ends before it.
    pub fn wait_until<T>(&mut self, what: &str, look: impl Fn(&Guest) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            let ended = self.process.child().try_wait().ok().flatten();
            if let Some(found) = look(self) {
                return found;
            }
            if let Some(status) = ended {
                panic!(
                    "Ferry ended ({status}) before {what}\n{}",
                    self.transcript()
                );
            }
            let limit = self.patience.limit;
            if begin.elapsed() > limit {
                panic!("no {what} within {limit:?}\n{}", self.transcript());
            }
            thread::sleep(self.patience.poll);
        }
    }

    /// Whether Ferry still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.child().try_wait(), Ok(None))
    }

    /// Ferry's process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends Ferry a signal.
    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(self) -> Ended {
        self.process.signal(libc::SIGTERM);
        self.end()
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let limit = self.patience.limit;
        let Some(status) = self.process.wait(limit) else {
            panic!(
                "Ferry has not ended within {limit:?}\n{}",
                self.transcript()
            );
        };
        if let Some(collector) = self.collector.take() {
            let _ = collector.join();
        }
        let ended = Ended {
            status: status.code(),
            serial: self.serial(),
            log: self.log(),
        };
        self.forget_serial();
        ended
    }

    /// Serial port and log so far, for a failed test's message.
    pub fn transcript(&self) -> String {
        transcript(&self.serial(), &self.log())
    }
}
