//! Writes that fail: in the end the tables are those of a programmer without failures.
//!
//! Edits and faults differ in each run; `MILLRACE_FAULTS_SEED` repeats those of an earlier one.

use std::hash::{BuildHasher as _, RandomState};

use super::fake::Dice;
use super::source_ranges::{balanced, ranges};
use super::*;

const EDITS: u32 = 500;
/// The agent tries again every 100 ms, and has five seconds.
const TRIES: u32 = 50;

fn seed() -> u64 {
    match std::env::var("MILLRACE_FAULTS_SEED") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => RandomState::new().hash_one(0_u8),
    }
}

/// One edit of a cluster; the same numbers give the same edit.
fn edit(world: &mut World, [kind, which, how, more]: [u32; 4]) {
    let plain = format!("s{}", which % 20);
    let with_ranges = 30 + (which % 5) as u8;
    match kind % 8 {
        0 => world.delete(&plain),
        1 => world.delete(&format!("s{with_ranges}")),
        2 | 3 => {
            // Some services want one address; the order of their ages does not change.
            let created = if which.is_multiple_of(2) { OLD } else { NEW };
            world.service(&plain, &format!("10.96.0.{}", 1 + how % 15), created, 80);
        }
        4 | 5 => {
            let listed = ranges(more % 40, how % 20);
            balanced(world, with_ranges, 1 + (how % 3) as u16, &listed);
        }
        _ => {
            let addresses: Vec<_> = (0..how % 5)
                .map(|n| format!("10.244.1.{}", more % 50 + n))
                .collect();
            let state = |n: usize| match n % 3 {
                1 => r#""ready":false,"serving":true,"terminating":true"#,
                _ => "",
            };
            let endpoints: Vec<_> = addresses
                .iter()
                .enumerate()
                .map(|(n, address)| (address.as_str(), state(n)))
                .collect();
            world.slice(&plain, &endpoints);
        }
    }
    world.update();
}

#[test]
fn writes_that_fail_are_made_up_for() {
    let seed = seed();
    println!("MILLRACE_FAULTS_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut faulty = World::new(Fake::new(4096), 4096);
    let mut sound = World::new(Fake::new(4096), 4096);
    faulty.sync();
    sound.sync();
    *faulty.programmer.store().faults.borrow_mut() = Some((Dice::new(!seed), 10));
    for _ in 0..EDITS {
        let numbers = [(); 4].map(|()| dice.below(1 << 20));
        for world in [&mut faulty, &mut sound] {
            edit(world, numbers);
        }
    }
    let failed = faulty.programmer.store().failed.get();
    assert!(failed >= EDITS / 10, "{failed} writes failed");
    let done = (0..TRIES).any(|_| faulty.programmer.retry());
    assert!(done, "{} writes are pending", faulty.programmer.pending());
    let [faulty, sound] = [&faulty, &sound].map(|world| world.programmer.store());
    assert_eq!(faulty.dump(), sound.dump());
    assert_eq!(faulty.ranges_by_frontend(), sound.ranges_by_frontend());
    assert_eq!(*faulty.addresses.borrow(), *sound.addresses.borrow());
}

/// Of two services the older is removed and the younger inherits its address, but every write fails. Then the
/// younger is removed too.
#[test]
fn a_frontend_that_its_next_service_never_got_goes_with_it() {
    let mut world = World::new(Fake::new(64), 64);
    for (name, created) in [("old", OLD), ("young", NEW)] {
        world.service(name, "10.96.0.1", created, 80);
        world.slice(name, &[("10.244.1.1", "")]);
    }
    world.sync();
    world.changes.clear();
    *world.programmer.store().faults.borrow_mut() = Some((Dice::new(1), 1));
    for name in ["old", "young"] {
        world.delete(name);
        world.update();
    }
    *world.programmer.store().faults.borrow_mut() = None;
    assert!(world.programmer.retry(), "nothing is pending");
    assert_eq!(world.programmer.store().frontends.borrow().len(), 0);
    assert_eq!(world.programmer.store().addresses.borrow().len(), 0);
}
