//! Writes `resources/openapi.json` anew.

fn main() -> std::io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/openapi.json");
    std::fs::write(path, ferry_api::openapi::document())
}
