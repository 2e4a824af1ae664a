//! Prints the path of the tiny guest, a PVH kernel for tests and benchmarks.

fn main() {
    println!("{}", ferry_tests::TINY_GUEST);
}
