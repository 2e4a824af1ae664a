//! Texts of the form `key=value,key=value`, as flags hold them.
#![no_main]

use ferry_api::config::text;
use ferry_api::events::Monitor;
use ferry_api::server::SocketPlace;
use ferry_api::snapshot::RestoreRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(items) = text::split(input) {
        assert!(items.iter().all(|item| !item.key.is_empty()));
        let length =
            |item: &text::Item| item.key.len() + item.value.as_ref().map_or(0, String::len);
        assert!(items.iter().map(length).sum::<usize>() <= input.len());
    }
    if let (Some(bytes), Some(number)) = (text::size(input), text::whole_number(input)) {
        assert_eq!(bytes, number);
    }
    if let Some(bytes) = text::hex(input) {
        assert_eq!(bytes.len() * 2, input.len());
    }
    if let Ok(SocketPlace::Path(path)) = input.parse() {
        assert!((1..=107).contains(&path.as_os_str().len()));
    }
    let _ = input.parse::<Monitor>();
    if let Ok(mut request) = input.parse::<RestoreRequest>() {
        assert!(request.source.is_absolute());
        let _ = request.add_socket(input);
    }
});
