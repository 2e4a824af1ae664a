//! What a back-end is told to do wrong, and when.

use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

/// A moment in a back-end's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Whenever this message arrives.
    Each(FrontendReq),
    /// Only the nth time that this message arrives, beginning with 1.
    Nth(FrontendReq, usize),
    /// When the nth message of all arrives, beginning with 1.
    NthOfAll(usize),
}

/// What the back-end does then, instead of answering properly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Closes the connection.
    Close,
    /// Answers properly, but first does nothing at all for so long.
    Late(Duration),
    /// Answers neither this message nor any later one; the rings are served.
    NeverAnswer,
    /// Sends half a header, and answers nothing more.
    HalfHeader,
    /// The answer names another request.
    WrongRequest,
    /// The answer has this many more bytes, in header and payload.
    Longer(u32),
    /// The answer has this many fewer bytes, in header and payload.
    Shorter(u32),
    /// The answer's header gives this size; the payload stays as it is.
    ClaimsSize(u32),
    /// The answer's header has these flags.
    Flags(u32),
    /// This many file descriptors come with the answer.
    Fds(usize),
    /// The answer says that it went wrong.
    Refuse,
    /// The answer is this number.
    Number(u64),
    /// After the proper answer comes another one.
    AnswerTwice,
}

/// A line of the script.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub when: When,
    pub then: Misbehaviour,
}

/// Counts messages and says what is to be done with each.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub rules: Vec<Rule>,
    seen: Vec<u32>,
}

impl Script {
    pub fn next(&mut self, code: u32) -> Option<Misbehaviour> {
        self.seen.push(code);
        let of_this_kind = self.seen.iter().filter(|seen| **seen == code).count();
        let applies = |rule: &&Rule| match rule.when {
            When::Each(request) => u32::from(request) == code,
            When::Nth(request, n) => u32::from(request) == code && n == of_this_kind,
            When::NthOfAll(n) => n == self.seen.len(),
        };
        self.rules.iter().find(applies).map(|rule| rule.then)
    }
}
