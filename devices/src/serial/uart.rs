//! The 16550's registers, and the backlog of input that waits for room in its FIFO.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use super::worker::EXCESS_MOST;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

const LINE_STATUS_DATA_READY: u8 = 1;
const INTERRUPT_ENABLE_RECEIVED: u8 = 1;
const INTERRUPT_NONE: u8 = 1;
const INTERRUPT_RECEIVED: u8 = 4;
const INTERRUPT_BITS: u8 = 0x0f;

/// Input is read from the far end while fewer bytes than this wait for the guest.
pub const BACKLOG_MOST: usize = 4096;

/// The most bytes of saved input: what a far end that does not wait may have sent.
const INPUT_MOST: usize = EXCESS_MOST + BACKLOG_MOST;

/// Saved state of the serial port: its registers, and input that the guest has not read. Output belongs to the far end
/// as soon as the guest has sent it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialStateV1 {
    /// Divisor latch.
    pub baud_divisor: u16,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Input in the FIFO.
    pub fifo: Vec<u8>,
    /// Input that waits for room in the FIFO.
    pub backlog: Vec<u8>,
}

impl Saved for SerialStateV1 {
    const SCHEMA: &'static str = "serial";
    const VERSION: u16 = 1;
    const MOST: usize = INPUT_MOST + 1024;
}

/// Saved state that no serial port can have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved serial port has more input than a serial port holds")]
pub struct BadSerialState;

/// Registers and backlog.
#[derive(Debug)]
pub struct Uart {
    serial: Serial<Interrupt, NoEvents, Transmitter>,
    backlog: VecDeque<u8>,
    /// The serial thread does not read the far end until the backlog has room.
    input_waits: bool,
}

impl Uart {
    /// A port as after power-on.
    pub fn new(interrupt: EventFd, output: Arc<Output>) -> Self {
        Self {
            serial: Serial::new(Interrupt(Arc::new(interrupt)), Transmitter(output)),
            backlog: VecDeque::new(),
            input_waits: false,
        }
    }

    /// Sets the registers to their values after power-on.
    pub fn reset(&mut self) {
        let interrupt = self.serial.interrupt_evt().clone();
        let output = self.serial.writer().clone();
        self.serial = Serial::new(interrupt, output);
        self.fill();
    }

    /// The registers, and the input that the guest has not read.
    pub fn save(&self) -> SerialStateV1 {
        let Self {
            serial,
            backlog,
            input_waits: _,
        } = self;
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = serial.state();
        SerialStateV1 {
            baud_divisor: u16::from_le_bytes([baud_divisor_low, baud_divisor_high]),
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo: in_buffer,
            backlog: backlog.iter().copied().collect(),
        }
    }

    /// Replaces registers and input by saved ones; an interrupt that was pending is raised. Input that has come from
    /// the far end meanwhile follows what was saved.
    pub fn load(&mut self, state: &SerialStateV1) -> Result<(), BadSerialState> {
        let SerialStateV1 {
            baud_divisor,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo,
            backlog,
        } = state;
        if backlog.len() > INPUT_MOST {
            return Err(BadSerialState);
        }
        let [baud_divisor_low, baud_divisor_high] = baud_divisor.to_le_bytes();
        let registers = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: *interrupt_enable,
            interrupt_identification: *interrupt_identification,
            line_control: *line_control,
            line_status: *line_status,
            modem_control: *modem_control,
            modem_status: *modem_status,
            scratch: *scratch,
            in_buffer: fifo.clone(),
        };
        let fresh = self.serial.state().in_buffer;
        self.serial = Serial::from_state(
            &registers,
            self.serial.interrupt_evt().clone(),
            NoEvents,
            self.serial.writer().clone(),
        )
        .map_err(|_| BadSerialState)?;
        let newer = std::mem::replace(&mut self.backlog, backlog.iter().copied().collect());
        self.backlog.extend(fresh);
        self.backlog.extend(newer);
        self.fill();
        Ok(())
    }

    /// A guest's read of a register.
    pub fn read(&mut self, offset: u8) -> u8 {
        let mut value = self.serial.read(offset);
        match offset {
            DATA if !self.data_ready() => self.fill(),
            // The model forgets the cause when the first byte is read. A driver that stops in the
            // middle of the FIFO and looks for a cause has to find it again, as on a real 16550;
            // otherwise the rest stays until more input comes.
            INTERRUPT_IDENTIFICATION
                if value & INTERRUPT_NONE != 0
                    && self.data_ready()
                    && self.serial.read(INTERRUPT_ENABLE) & INTERRUPT_ENABLE_RECEIVED != 0 =>
            {
                value = value & !INTERRUPT_BITS | INTERRUPT_RECEIVED;
            }
            _ => {}
        }
        value
    }

    /// A guest's write of a register.
    pub fn write(&mut self, offset: u8, value: u8) {
        // Neither the queue nor the interrupt's eventfd can fail.
        let _ = self.serial.write(offset, value);
        if offset == MODEM_CONTROL {
            // In loop-back mode the line was cut.
            self.fill();
        }
    }

    /// Input from the far end.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
        self.fill();
    }

    /// How many more bytes may be read from the far end. At 0, the serial thread is woken when there
    /// is room again.
    pub fn room(&mut self) -> usize {
        let room = BACKLOG_MOST.saturating_sub(self.backlog.len());
        self.input_waits = room == 0;
        room
    }

    /// Bytes that wait for room in the FIFO.
    pub fn waiting(&self) -> usize {
        self.backlog.len()
    }

    fn data_ready(&mut self) -> bool {
        self.serial.read(LINE_STATUS) & LINE_STATUS_DATA_READY != 0
    }

    /// Moves the backlog into the FIFO as far as there is room.
    fn fill(&mut self) {
        while !self.backlog.is_empty() && self.serial.fifo_capacity() > 0 {
            // In loop-back mode nothing is taken.
            let taken = self.serial.enqueue_raw_bytes(self.backlog.as_slices().0);
            match taken {
                Ok(0) | Err(_) => break,
                Ok(taken) => drop(self.backlog.drain(..taken)),
            }
        }
        if self.input_waits && self.backlog.len() < BACKLOG_MOST / 2 {
            self.input_waits = false;
            self.serial.writer().0.wake();
        }
    }
}

/// The line to the interrupt controller.
#[derive(Clone, Debug)]
struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        // The only failure is a counter at its maximum: the interrupt is pending already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// The line to the far end.
#[derive(Clone, Debug)]
struct Transmitter(Arc<Output>);

impl io::Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
