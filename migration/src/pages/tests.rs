use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use super::*;
use crate::link::*;
use crate::watch::Unwatched;

const MIB: u64 = 1 << 20;

fn memfd(bytes: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn region(file: &File, gpa: u64, bytes: u64) -> Region<'_> {
    let part = RamPart {
        file,
        offset: 0,
        bytes,
    };
    Region { gpa, part }
}

#[test]
fn thin() {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("s"));
    let mut listener = Listener::bind(&address, None).unwrap();
    let source = memfd(8 * MIB);
    source.write_all_at(&[7; 300_000], 3 * MIB + 5).unwrap();
    let target = memfd(8 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut link = listener.accept(&Unwatched, None).unwrap();
            link.accept_it().unwrap();
            assert!(matches!(
                link.receive(&Unwatched).unwrap(),
                Message::Describe {
                    piece: b"it",
                    last: Last::Yes
                }
            ));
            link.send(&Message::Prepared, &Unwatched).unwrap();
            let ram = RamTarget::new(&[region(&target, 0, 8 * MIB)], 1).unwrap();
            assert_eq!(
                link.receive_into(&ram, &Unwatched).unwrap(),
                Message::StateEnd
            );
            assert_eq!(link.receive(&Unwatched).unwrap().kind(), Kind::End);
            link.send(&Message::Ready, &Unwatched).unwrap();
        });
        let mut link = Link::connect(
            &address,
            None,
            StreamId([3; 16]),
            Purpose::Migrate { connections: 1 },
            Patience::default(),
            &Unwatched,
        )
        .unwrap();
        link.send(
            &Message::Describe {
                piece: b"it",
                last: Last::Yes,
            },
            &Unwatched,
        )
        .unwrap();
        assert_eq!(link.receive(&Unwatched).unwrap(), Message::Prepared);
        let mut links = [link];
        let sent = send_all(
            &mut links,
            &[region(&source, 0, 8 * MIB)],
            &Progress::default(),
            &Unwatched,
        )
        .unwrap();
        assert_eq!(sent.data + sent.zeros, 8 * MIB);
        links[0].send(&Message::StateEnd, &Unwatched).unwrap();
        end_all(&mut links, &Unwatched).unwrap();
        assert_eq!(links[0].receive(&Unwatched).unwrap(), Message::Ready);
    });
    let mut a = vec![0; 8 * MIB as usize];
    let mut b = a.clone();
    source.read_exact_at(&mut a, 0).unwrap();
    target.read_exact_at(&mut b, 0).unwrap();
    assert!(a == b);
}
