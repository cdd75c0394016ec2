//! What every shop must do, whichever framework it is built with and wherever it caches.
//!
//! A scenario is a function of running shops. `shop_tests!` makes one test of every scenario and store, each with
//! processes of its own, so that no test depends on what another one left behind.

pub mod backend;
pub mod faults;
pub mod headers;
pub mod keys;
pub mod lifecycle;
pub mod on_redis;
pub mod private;
pub mod races;
pub mod requests;
pub mod shared;
pub mod streams;
pub mod writes;

use futures_util::future::join_all;
use serde_json::{Value, json};

/// One test for every scenario and store. The argument is the path of the shop's program.
#[macro_export]
macro_rules! shop_tests {
    ($program:expr) => {
        $crate::shop_tests! { @any_store $program;
            headers: a_miss_then_hits, no_ttl_means_no_cache, max_age_counts_down, matching_etags_answer_304,
                etags_are_compared_after_a_miss_too, etags_follow_the_body, head_uses_the_entry_of_get,
                head_never_poisons_get, vary_keeps_variants_apart;
            requests: no_store_keeps_out, no_cache_refreshes, unknown_directives_change_nothing,
                parts_are_cut_and_content_bypasses, credentials_share_what_is_public;
            keys: order_of_parameters_does_not_matter, look_alikes_share_nothing;
            writes: deleting_evicts_one_key, clearing_evicts_the_group_alone, writing_through_is_a_hit,
                writes_answer_no_conditions, failures_change_nothing;
            private: users_never_meet, users_never_meet_in_a_crowd, without_a_token_nothing_is_kept;
            backend: drafts_are_not_kept, parts_are_kept_apart, contents_are_kept, views_are_counted,
                has_warms_up, settings_have_defaults, sessions_and_orders_are_taken;
            streams: events_flow_at_once, cookies_are_never_stored;
            races: a_crowd_runs_the_handler_once, no_cache_joins_no_earlier_flight, no_view_is_lost,
                fills_never_outlive_an_eviction, reads_follow_writes, overlapping_writes_end_alike,
                a_leader_that_hangs_up_strands_nobody, a_writer_that_hangs_up_leaves_nothing_old;
        }
        $crate::shop_tests! { @on_redis $program;
            on_redis: keys_and_lifetimes_are_the_documented_ones, look_alikes_have_the_documented_keys,
                evictions_leave_nothing_behind, tokens_stay_secret, what_cannot_be_read_is_a_miss;
            faults: a_dead_redis_is_survived, a_hung_redis_is_survived, writes_during_an_outage_are_not_forgotten,
                a_writer_that_hangs_up_during_an_outage_leaves_nothing_old;
        }
        $crate::shop_tests! { @two_shops $program;
            shared: what_one_stores_the_other_serves, what_one_evicts_is_gone_for_both,
                a_crowd_over_both_runs_the_handler_once, fills_never_outlive_the_others_eviction,
                no_view_is_lost_over_both;
        }
        $crate::shop_tests! { @alone $program;
            lifecycle: stops_when_told_and_answers_first, starts_without_its_redis, a_bad_url_is_refused_in_secret;
        }
    };
    (@any_store $program:expr; $($module:ident: $($name:ident),+;)+) => {
        mod memory {
            $($(
                #[tokio::test]
                async fn $name() {
                    let shop = $crate::shop::Shop::in_memory($program);
                    $crate::scenarios::$module::$name(&shop).await;
                }
            )+)+
        }
        mod redis {
            $($(
                #[tokio::test]
                async fn $name() {
                    let redis = $crate::redis_server::RedisServer::start();
                    let shop = $crate::shop::Shop::on_patient_redis($program, &redis.url());
                    $crate::scenarios::$module::$name(&shop).await;
                }
            )+)+
        }
    };
    (@on_redis $program:expr; $($module:ident: $($name:ident),+;)+) => {
        mod redis_alone {
            $($(
                #[tokio::test]
                async fn $name() {
                    let mut redis = $crate::redis_server::RedisServer::start();
                    let shop = $crate::shop::Shop::on_redis($program, &redis.url());
                    $crate::scenarios::$module::$name(&shop, &mut redis).await;
                }
            )+)+
        }
    };
    (@two_shops $program:expr; $($module:ident: $($name:ident),+;)+) => {
        mod redis_shared {
            $($(
                #[tokio::test]
                async fn $name() {
                    let redis = $crate::redis_server::RedisServer::start();
                    let one = $crate::shop::Shop::on_patient_redis($program, &redis.url());
                    let other = $crate::shop::Shop::on_patient_redis($program, &redis.url());
                    $crate::scenarios::$module::$name(&one, &other).await;
                }
            )+)+
        }
    };
    (@alone $program:expr; $($module:ident: $($name:ident),+;)+) => {
        mod process {
            $($(
                #[tokio::test]
                async fn $name() {
                    $crate::scenarios::$module::$name($program).await;
                }
            )+)+
        }
    };
}

/// Runs `count` futures at once and answers what they answered, in order.
async fn crowd<T, F: Future<Output = T>>(count: usize, make: impl FnMut(usize) -> F) -> Vec<T> {
    join_all((0..count).map(make)).await
}

/// A product as the shop has it at start.
fn product(id: u64) -> Value {
    json!({ "id": id, "name": format!("product-{id}"), "price": id * 100 })
}
