//! Requirements on every shop, for each framework and each store.
//!
//! A scenario is a function of running shops. `shop_tests!` makes one test of every scenario and store, each with its own
//! processes, so that no test depends on another.

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
pub mod tags;
pub mod writes;

use futures_util::future::join_all;
use serde_json::{Value, json};

/// Makes one test for every scenario and store. The argument is the path of the shop's program.
#[macro_export]
macro_rules! shop_tests {
    ($program:expr) => {
        $crate::shop_tests! { @any_store $program;
            headers: first_request_misses_and_the_next_hits, entry_without_ttl_is_sent_with_no_cache,
                max_age_counts_down, matching_etags_answer_304, matching_etag_gets_304_after_a_miss,
                etags_follow_the_body, head_uses_the_entry_of_get, head_response_is_never_served_to_get,
                each_vary_variant_has_its_own_entry;
            requests: no_store_request_bypasses_the_cache, no_cache_request_refreshes_the_entry,
                unknown_directives_are_ignored, ranges_are_cut_from_the_entry_and_content_bypasses,
                credentials_share_entries_of_a_public_route;
            keys: order_of_parameters_does_not_matter, similar_paths_have_separate_entries,
                tracking_parameters_are_ignored;
            writes: deleting_evicts_one_key, clearing_a_group_evicts_only_that_group,
                write_through_is_the_next_hit, writes_ignore_preconditions, failed_writes_change_nothing;
            private: each_token_has_its_own_entry, concurrent_users_get_their_own_responses,
                requests_without_a_token_are_not_cached;
            backend: drafts_are_not_cached, dashboard_parts_are_cached_separately, contents_are_cached,
                views_are_counted, has_warms_up, settings_have_defaults, sessions_and_orders_are_taken;
            streams: events_are_streamed_without_delay, cookies_are_never_stored;
            tags: changed_product_renews_exactly_the_pages_that_show_it,
                softly_evicted_pages_are_served_while_they_are_refreshed, evicted_user_loses_only_her_own_entries,
                evicted_path_loses_all_its_queries;
            races: concurrent_requests_run_the_handler_once, no_cache_request_does_not_join_an_earlier_fill,
                concurrent_updates_are_all_counted, fill_that_overlaps_an_eviction_is_not_stored,
                reads_after_a_write_return_the_new_value, overlapping_writes_leave_cache_and_origin_equal,
                leader_disconnect_does_not_block_followers, writer_disconnect_leaves_no_old_entry;
        }
        $crate::shop_tests! { @on_redis $program;
            on_redis: keys_and_ttls_match_the_documentation, similar_paths_have_the_documented_keys,
                evicted_entries_are_deleted_from_redis, keys_contain_no_token, unreadable_records_are_misses;
            faults: requests_are_answered_while_redis_is_down, requests_are_answered_while_redis_hangs,
                evictions_during_an_outage_hold_after_it,
                writer_disconnect_during_an_outage_leaves_no_old_entry;
        }
        $crate::shop_tests! { @two_shops $program;
            shared: entry_of_one_shop_is_a_hit_in_the_other, eviction_by_one_shop_applies_to_both,
                concurrent_requests_to_both_run_the_handler_once,
                fill_that_overlaps_the_other_shops_eviction_is_not_stored,
                concurrent_updates_by_both_are_all_counted;
            tags: fills_that_overlap_a_tag_eviction_are_not_stored;
        }
        $crate::shop_tests! { @alone $program;
            lifecycle: sigterm_lets_open_requests_finish, starts_while_redis_is_down,
                invalid_url_is_refused_without_showing_the_password;
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

/// Runs `count` futures concurrently and returns their results, in order.
async fn concurrently<T, F: Future<Output = T>>(count: usize, make: impl FnMut(usize) -> F) -> Vec<T> {
    join_all((0..count).map(make)).await
}

/// Returns a product as the shop has it at start.
fn product(id: u64) -> Value {
    json!({ "id": id, "name": format!("product-{id}"), "price": id * 100 })
}
