//! Text for people: sizes, long words made short, and nothing that a terminal would obey.

/// Characters in a line.
const WIDTH: usize = 80;
/// Where the second word of a line begins.
const INDENT: usize = 10;

/// `text` without the characters that a terminal takes for commands: what comes from a guest or a back-end may be in it.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// `text` in at most `width` characters, with `…` in the middle if some had to go. Of a path, more of the end stays,
/// which tells more.
pub fn shorten(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let front = kept / 3;
    let back = kept - front;
    let start: String = text.chars().take(front).collect();
    let end: String = text.chars().skip(length - back).collect();
    format!("{start}…{end}")
}

/// `bytes` in the largest unit in which they are a whole number.
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// About `bytes`, for numbers that change.
pub fn about(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        if bytes >> shift > 0 {
            // Rounded down: what is not all there is not to look as if it were.
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} bytes")
}

/// A time of so many milliseconds.
pub fn time(ms: u64) -> String {
    match ms {
        ..10_000 => format!("{ms} ms"),
        _ => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
    }
}

/// `text` in lines of at most `width` characters, broken at spaces where there are any.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let characters: Vec<char> = word.chars().collect();
        for (index, piece) in characters.chunks(width.max(1)).enumerate() {
            let gap = usize::from(used > 0 && index == 0);
            if used + gap + piece.len() > width && used > 0 {
                lines.push(String::new());
                used = 0;
            }
            let last = lines.len() - 1;
            if gap > 0 && used > 0 {
                lines[last].push(' ');
                used += 1;
            }
            lines[last].extend(piece);
            used += piece.len();
        }
    }
    lines
}

/// A line of a name and its values, or more lines, broken between the items.
pub fn list(name: &str, items: &[String]) -> String {
    let mut lines = vec![String::new()];
    for (index, item) in items.iter().enumerate() {
        let comma = if index + 1 < items.len() { "," } else { "" };
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            *line = format!("{item}{comma}");
        } else if INDENT + line.len() + 1 + item.len() + comma.len() <= WIDTH {
            *line += &format!(" {item}{comma}");
        } else {
            lines.push(format!("{item}{comma}"));
        }
    }
    let gap = "\n".to_owned() + &" ".repeat(INDENT);
    format!("{name:INDENT$}{}\n", lines.join(&gap))
}

/// A line of a name and its value, or more of them if it is long.
pub fn field(name: &str, value: &str) -> String {
    let lines = wrap(&printable(value), WIDTH - INDENT);
    let gap = "\n".to_owned() + &" ".repeat(INDENT);
    let name = printable(name);
    match name.chars().count() < INDENT {
        true => format!("{name:INDENT$}{}\n", lines.join(&gap)),
        false => format!("{name}{gap}{}\n", lines.join(&gap)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_keeps_its_end() {
        let path = "/run/user/1000/ferry/machines/build/disk0.sock";
        let short = shorten(path, 24);
        assert_eq!(short, "/run/us…build/disk0.sock");
        assert_eq!(shorten(path, path.len()), path);
        for width in 1..path.len() {
            assert_eq!(shorten(path, width).chars().count(), width);
        }
        assert_eq!(shorten("ünïcödé", 3), "…dé");
    }

    #[test]
    fn a_terminal_is_not_commanded() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
        assert_eq!(printable("naïve …"), "naïve …");
    }

    #[test]
    fn sizes_are_exact() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size((1 << 30) + 1), "1073741825 bytes");
    }

    #[test]
    fn numbers_that_change_are_short() {
        assert_eq!(about(1023), "1023 bytes");
        assert_eq!(about(1536), "1.5 KiB");
        assert_eq!(about((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(about(u64::MAX), "16777215.9 TiB");
        assert_eq!(time(9999), "9999 ms");
        assert_eq!(time(10_000), "10.0 s");
        assert_eq!(time(u64::MAX), "18446744073709551.6 s");
    }

    #[test]
    fn wrapped_text_is_the_same_words_in_narrow_lines() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("", 8), [""]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
    }

    #[test]
    fn steps_are_not_torn_from_their_times() {
        let steps = [
            "check 0 ms",
            "pause 0 ms",
            "machine 0 ms",
            "ram 1 ms",
            "devices 1 ms",
        ];
        let steps: Vec<_> = [&steps[..], &["publish 2 ms"]].concat();
        let steps: Vec<_> = steps.into_iter().map(str::to_owned).collect();
        assert_eq!(
            list("steps", &steps),
            "steps     check 0 ms, pause 0 ms, machine 0 ms, ram 1 ms, devices 1 ms,\n          publish 2 ms\n"
        );
    }
}
