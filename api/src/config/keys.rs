//! The keys of the flags that hold `key=value` pairs, for all who read such flags.

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A path, which means something only in the directory of whoever has written it.
    Path,
    /// A whole number, also in base 16.
    Number,
    /// Bytes, as in `512M`.
    Size,
    /// `on` or `off`.
    Switch,
    /// `[0,1]`.
    Numbers,
    /// Hexadecimal digits, or `@FILE`.
    Bytes,
}

/// A key, what it is called in the API, and what its value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As it stands on the command line.
    pub name: &'static str,
    /// As the API calls it.
    pub field: &'static str,
    /// What its value looks like.
    pub kind: Kind,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    renamed(name, name, kind)
}

const fn renamed(name: &'static str, field: &'static str, kind: Kind) -> Key {
    Key { name, field, kind }
}

/// `--cpus`.
pub const CPUS: &[Key] = &[
    renamed("boot", "boot_vcpus", Kind::Number),
    renamed("max", "max_vcpus", Kind::Number),
];

/// `--memory`.
pub const MEMORY: &[Key] = &[
    key("size", Kind::Size),
    key("shared", Kind::Switch),
    key("hugepages", Kind::Switch),
    key("hugepage_size", Kind::Size),
    key("prefault", Kind::Switch),
];

/// `--disk`.
pub const DISK: &[Key] = &[
    key("vhost_user", Kind::Switch),
    renamed("socket", "vhost_socket", Kind::Path),
    key("id", Kind::Text),
    key("num_queues", Kind::Number),
    key("queue_size", Kind::Number),
    key("readonly", Kind::Switch),
];

/// `--fs`.
pub const FS: &[Key] = &[
    key("tag", Kind::Text),
    key("socket", Kind::Path),
    key("id", Kind::Text),
    key("num_queues", Kind::Number),
    key("queue_size", Kind::Number),
];

/// `--vhost-user`.
pub const VHOST_USER: &[Key] = &[
    key("socket", Kind::Path),
    key("device_type", Kind::Number),
    key("id", Kind::Text),
    key("num_queues", Kind::Number),
    key("queue_size", Kind::Number),
    key("state", Kind::Text),
    key("drain", Kind::Numbers),
    key("config", Kind::Bytes),
];

/// `--restore`. The devices' sockets have a flag of their own.
pub const RESTORE: &[Key] = &[
    key("source_url", Kind::Path),
    key("memory_restore_mode", Kind::Text),
    key("resume", Kind::Switch),
    key("prefault", Kind::Switch),
];

/// The names of the keys, in order.
pub fn names(keys: &[Key]) -> Vec<&'static str> {
    keys.iter().map(|key| key.name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_a_flag_takes_is_what_the_api_takes() {
        let api: serde_json::Value = serde_json::from_str(&crate::openapi::document()).unwrap();
        for (schema, keys) in [
            ("Cpus", CPUS),
            ("Memory", MEMORY),
            ("Disk", DISK),
            ("Fs", FS),
            ("VhostUser", VHOST_USER),
            ("Restore", RESTORE),
        ] {
            let properties = &api["components"]["schemas"][schema]["properties"];
            let properties = properties.as_object().unwrap().keys().map(String::as_str);
            let fields = keys.iter().map(|key| key.field);
            // These have flags of their own, `--restore-socket` and `--serial`.
            let elsewhere: &[&str] = match schema {
                "Restore" => &["devices", "serial"],
                _ => &[],
            };
            let fields = fields.chain(elsewhere.iter().copied());
            assert_eq!(
                fields.collect::<BTreeSet<_>>(),
                properties.collect(),
                "{schema}"
            );
            let names: BTreeSet<_> = names(keys).into_iter().collect();
            assert_eq!(names.len(), keys.len(), "{schema}");
        }
    }
}
