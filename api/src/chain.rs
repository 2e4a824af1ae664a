//! Errors with all their causes, as users get to see them.

use std::error::Error;

/// What an error says, and then what each of its causes says, outermost first; never empty.
pub fn chain(error: &dyn Error) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn the_outermost_is_the_first() {
        let innermost = Layer {
            text: "no answer",
            source: None,
        };
        assert_eq!(chain(&innermost), ["no answer"]);
        let outermost = Layer {
            text: "cannot pause",
            source: Some(Box::new(innermost)),
        };
        assert_eq!(chain(&outermost), ["cannot pause", "no answer"]);
    }
}
