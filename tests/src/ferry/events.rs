//! What a Ferry tells those who watch it.

use serde_json::Value;

use super::Guest;

const DOCUMENTATION: &str = include_str!("../../../docs/api.md");

impl Guest {
    /// The names of all events so far, of the last 1024.
    pub fn events(&self) -> Vec<String> {
        let events = self.whole_events();
        let names = events.iter().map(|event| event["event"].as_str());
        names.map(|name| name.expect("a name").to_owned()).collect()
    }

    /// The same, with all that they say.
    pub fn whole_events(&self) -> Vec<Value> {
        let events = self.get("vm.events?after=0&wait=0");
        let list = events.as_array().or_else(|| events["events"].as_array());
        list.expect("a list").clone()
    }

    /// What the first event of this name says. Panics unless it is documented.
    pub fn event(&self, name: &str) -> Value {
        let events = self.whole_events();
        let event = events.iter().find(|event| event["event"] == name);
        let event = event.unwrap_or_else(|| panic!("no {name}: {events:?}"));
        is_documented(event);
        event["properties"].clone()
    }
}

/// The event has a row in the documentation, which names its properties.
pub fn is_documented(event: &Value) {
    let (source, name) = (event["source"].as_str(), event["event"].as_str());
    let begin = format!(
        "| `{}` | `{}` |",
        source.expect("a source"),
        name.expect("a name")
    );
    let row = DOCUMENTATION
        .lines()
        .find(|line| line.starts_with(&begin))
        .unwrap_or_else(|| panic!("docs/api.md has no row {begin}"));
    let properties = event["properties"].as_object().expect("properties");
    for property in properties.keys() {
        assert!(row.contains(&format!("`{property}`")), "{property}: {row}");
    }
}
