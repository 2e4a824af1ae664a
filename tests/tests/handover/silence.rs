//! What back-ends notice of a hand-over: nothing.
