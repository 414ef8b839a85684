//! Tests of `limiter`.

use super::*;

const HEALTH: Port = Port {
    name: "health",
    number: 1,
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn open(limiter: &ConnectionLimiter) -> u64 {
    limiter.usage().values().map(|usage| usage.open).sum()
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_an_address_is_let_in_and_its_oldest_silent_one_is_cut() {
    let (limiter, mut notified) = ConnectionLimiter::new();
    let mut held: Vec<_> = (0..OF_ADDRESS)
        .map(|_| limiter.take(HEALTH, ip("10.0.0.1"), false).expect("room"))
        .collect();
    assert!(
        limiter.take(HEALTH, ip("10.0.0.1"), false).is_none(),
        "all have just come"
    );
    let asking = limiter.take(HEALTH, ip("10.0.0.1"), true);
    assert!(asking.is_some(), "a request is there");
    assert_eq!(held.remove(0).lost().await, Some(Cut::Share));
    drop(asking);
    held.extend(limiter.take(HEALTH, ip("10.0.0.1"), false));
    let other = Port { number: 2, ..HEALTH };
    assert!(
        limiter.take(other, ip("10.0.0.1"), false).is_some(),
        "another port has its own shares"
    );
    assert!(limiter.take(HEALTH, ip("10.0.0.2"), false).is_some());
    tokio::time::advance(TO_ASK).await;
    held[0].asked().store(true, Ordering::Relaxed);
    let newest = limiter.take(HEALTH, ip("::ffff:10.0.0.1"), false);
    assert!(newest.is_some(), "the same address in another form");
    assert_eq!(
        held[1].lost().await,
        Some(Cut::Share),
        "the first one has asked already"
    );
    let expected = AtShare {
        peer: ip("10.0.0.1"),
        port: "health",
    };
    assert_eq!(notified.try_recv(), Ok(expected));
    assert!(notified.try_recv().is_err(), "once");
    let usage = &limiter.usage()["health"];
    assert_eq!((usage.open, usage.at_share), (OF_ADDRESS as u64, 1));
    assert_eq!(usage.cut[&Cut::Share], 3);
    drop((held, newest));
    assert_eq!(open(&limiter), 0);
}

#[tokio::test(start_paused = true)]
async fn clients_that_do_not_read_are_cut_after_a_second() {
    let (limiter, _notified) = ConnectionLimiter::new();
    let mut held = Vec::new();
    for _ in 0..OF_ADDRESS {
        let permit = limiter.take(HEALTH, ip("10.0.0.1"), false).expect("room");
        permit.asked().store(true, Ordering::Relaxed);
        held.push(permit);
    }
    tokio::time::advance(TO_ASK).await;
    assert!(
        limiter.take(HEALTH, ip("10.0.0.1"), false).is_none(),
        "they are being served"
    );
    tokio::time::advance(TO_READ).await;
    assert!(limiter.take(HEALTH, ip("10.0.0.1"), false).is_some());
    assert_eq!(held[0].lost().await, Some(Cut::Share));
}

#[tokio::test(start_paused = true)]
async fn addresses_of_one_network_compete_and_the_one_with_most_is_cut() {
    let (limiter, _notified) = ConnectionLimiter::new();
    let quiet = limiter.take(HEALTH, ip("fd00::1:1"), false).expect("room");
    tokio::time::advance(TO_ASK).await;
    let mut greedy = Vec::new();
    for number in 0.. {
        let peer = ip(&format!("fd00::2:{:x}", number / OF_ADDRESS));
        greedy.extend(limiter.take(HEALTH, peer, false));
        if greedy.len() + 1 == OF_NETWORK {
            break;
        }
    }
    assert!(
        limiter.take(HEALTH, ip("fd00::9"), false).is_some(),
        "a silent one that came before the others"
    );
    drop(quiet);
    tokio::time::advance(TO_ASK).await;
    let back = limiter.take(HEALTH, ip("fd00::1:1"), false).expect("room");
    let again = limiter.take(HEALTH, ip("fd00::1:2"), false).expect("room");
    assert_eq!(greedy[0].lost().await, Some(Cut::Share));
    assert!(
        limiter.take(HEALTH, ip("fd00:0:0:1::1"), false).is_some(),
        "another network"
    );
    drop((back, again));
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_all_ports_cuts_the_largest_holder() {
    let (limiter, _notified) = ConnectionLimiter::new();
    let one = limiter.take(HEALTH, ip("192.0.2.1"), false).expect("room");
    let mut many = Vec::new();
    for number in 0.. {
        let peer = Ipv6Addr::from_bits(0xfd_u128 << 120 | (number / 16) << 64).into();
        let Some(permit) = limiter.take(HEALTH, peer, false) else {
            break;
        };
        many.push(permit);
    }
    assert_eq!(many.len() + 1, OF_ALL);
    tokio::time::advance(TO_ASK).await;
    let new_connection = limiter.take(HEALTH, ip("192.0.2.2"), false);
    assert!(new_connection.is_some());
    assert_eq!(many[0].lost().await, Some(Cut::Full));
    assert_eq!(open(&limiter), OF_ALL as u64);
    drop(one);
}
