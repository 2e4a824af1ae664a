//! The vhost-user front-end.
