"""Faults that the tests must see, at least two in every room; see mutants.py.

Each is one that somebody could make and nobody would notice by looking at what
a run prints: a check that no longer checks, a boundary, a lost mask or seed. A
new guard wants one here.
"""

import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Fault:
  """One changed piece of text.

  Attributes:
    file: the file below qaq_jax/.
    old: a text that stands in it once.
    new: what the fault makes of it.
    tests: that should fail: FILE::TEST below tests/, several by spaces.
  """

  file: str
  old: str
  new: str
  tests: str

  @property
  def name(self) -> str:
    """The file and the first changed line, for people."""
    return f'{self.file}: {self.old.strip().splitlines()[0][:60]}'

  @property
  def room(self) -> str:
    """The folder below qaq_jax/, or the file where there is none."""
    return self.file.split('/')[0]

  def planted(self, root: pathlib.Path = ROOT) -> str:
    """The file's text with the fault in it.

    Raises:
      ValueError: the text is not there, or more than once.
    """
    text = (root / 'qaq_jax' / self.file).read_text()
    if text.count(self.old) != 1:
      raise ValueError(
        f'{self.file}: {self.old!r} stands in it {text.count(self.old)} times'
      )
    return text.replace(self.old, self.new)


FAULTS = (
  # The command line.
  Fault(
    'config.py',
    'if type(options[name]) is not kind:',
    'if False:',
    'test_configs.py::test_config_argument_of_another_type_is_an_error',
  ),
  Fault(
    'config.py',
    "role = 'weak' if name == config.roles.weak else 'strong'",
    "role = 'strong'",
    'test_configs.py::test_runlocal_shrinks_the_recipe_to_embedded_models',
  ),
  Fault(
    'main.py',
    'if len(argv) != 2 or not (values.config and workdir):',
    'if len(argv) != 2 or not values.config:',
    'test_stages.py::test_a_stage_is_added_in_one_place',
  ),
  Fault(
    'pipeline.py',
    'lock = files.Lock(folder.path) if jax.process_index() == 0 else None',
    'lock = None',
    'test_pipeline.py::test_second_command_in_a_work_directory_is_refused',
  ),
  # Stages.
  Fault(
    'pipeline.py',
    'processes.barrier(stage.name)  # what the first one joins is there',
    'pass',
    'test_stages.py::test_processes_run_it_as_its_record_says',
  ),
  Fault(
    'stages/artifacts.py',
    '  if made_from != prepared.encode():',
    '  if False:',
    'test_pipeline.py::test_scores_of_other_samples_are_refused',
  ),
  Fault(
    'stages/artifacts.py',
    "if written.get('rows_sha256') != selection.report['rows_sha256']:",
    'if not written:',
    'test_pipeline.py::test_report_of_another_selection_is_refused',
  ),
  Fault(
    'stages/training_data.py',
    'if (sample.query, sample.answer) in known:',
    'if False:',
    'test_finetune_stage.py'
    '::test_compare_refuses_held_out_rows_that_are_trained_on',
  ),
  Fault(
    'stages/model.py',
    'if length > positions:',
    'if length > 2 * positions:',
    'test_pipeline.py::test_unusable_config_is_named',
  ),
  Fault(
    'stages/training_data.py',
    '    if not len(rows):\n',
    '    if False:\n',
    'test_finetune_stage.py::test_an_empty_selection_is_not_trained_on',
  ),
  Fault(
    'stages/compare.py',
    '    if not found:\n',
    '    if False:\n',
    'test_finetune_stage.py'
    '::test_held_out_samples_without_an_answer_judge_nothing',
  ),
  # The page.
  Fault(
    'report/markup.py',
    'html.escape(str(text)',
    'html.escape(str(text), quote=False) if False else (str(text)',
    'test_report.py::test_texts_of_samples_stay_texts',
  ),
  Fault(
    'report/markup.py',
    '  label = escape(model)',
    '  label = model',
    'test_report.py::test_a_name_of_a_model_is_escaped',
  ),
  Fault(
    'report/page.py',
    'columns.row, selection.rows)',
    'columns.row, selection.rows, invert=True)',
    'test_report.py::test_the_chosen_among_the_examples_are_marked',
  ),
  # The planner.
  Fault(
    'planner/collectives.py',
    "'all-reduce': 2 * share,",
    "'all-reduce': share,",
    'test_plan.py::test_collectives_of_a_loop_count_as_often_as_it_runs',
  ),
  Fault(
    'planner/footprint.py',
    'lora=lora) - param_bytes(config, mesh, 4)',
    'lora=lora)',
    'test_plan.py::test_adapters_alone_have_optimiser_state_by_estimate',
  ),
  # The demo.
  Fault(
    'demo/defects.py',
    '  if len(order) % 2 and groups:',
    '  if False:',
    'test_demo.py::test_odd_number_of_swaps_leaves_no_answer_in_place',
  ),
  Fault(
    'demo/defects.py',
    'if (pair.query, pair.answer) not in used]',
    'if pair not in used]',
    'test_demo.py::test_held_out_pairs_are_clean_and_not_in_the_demo',
  ),
  Fault(
    'demo/corpus.py',
    '    and mining.normalised_query(p.query) not in queries',
    '',
    'test_train.py::test_half_a_pair_of_the_demo_is_left_out_too',
  ),
  # Training.
  Fault(
    'finetune/loss.py',
    '* slope_CV\n',
    '\n',
    'test_finetune_step.py::test_updates_equal_torch',
  ),
  Fault(
    'finetune/optimizer.py',
    'if clip else rule',
    'if clip > 1 else rule',
    'test_finetune_step.py::test_updates_equal_torch',
  ),
  Fault(
    'finetune/batches.py',
    'np.random.default_rng((seed, epoch))',
    'np.random.default_rng(seed)',
    'test_finetune_batches.py::test_order_is_a_function_of_seed_and_epoch',
  ),
  Fault(
    'finetune/batches.py',
    'weights[r, at + 1 : stop] = example.weights[1:]',
    'weights[r, at:stop] = example.weights',
    'test_finetune_batches.py::test_every_example_is_laid_out_once',
  ),
  Fault(
    'finetune/checkpoints.py',
    'needed = size_of(state) * (keep + 2)',
    'needed = size_of(state) * keep',
    'test_finetune_loop.py::test_full_disk_is_refused_before_the_first_update',
  ),
  Fault(
    'finetune/curve.py',
    "keep=lambda record: record['step'] <= step,",
    'keep=lambda record: True,',
    'test_finetune_loop.py::test_a_curve_goes_on_behind_the_checkpoint',
  ),
  Fault(
    'finetune/lora.py',
    'delta = scale * delta.reshape(kernel.shape)',
    'delta = delta.reshape(kernel.shape)',
    'test_lora.py::test_merged_model_gives_the_same_logits',
  ),
  # Selection.
  Fault(
    'selection/budget.py',
    'np.floor(self.share * num_eligible + 1e-9)',
    'np.floor(self.share * num_eligible)',
    'test_rules.py::test_shares_are_of_the_eligible_rows_rounded_down',
  ),
  Fault(
    'selection/budget.py',
    "np.searchsorted(spent, max_tokens, side='right')",
    "np.searchsorted(spent, max_tokens, side='left')",
    'test_rules.py::test_a_token_budget_may_be_spent_to_the_last_token',
  ),
  Fault(
    'selection/rules/baselines.py',
    "dropped={'ratio >= 1': score >= 1}",
    "dropped={'ratio >= 1': score > 1}",
    'test_rules.py::test_the_published_forms_differ_at_one',
  ),
  Fault(
    'selection/sql/engine.py',
    "beyond = '>' if rule.highest else '<'",
    "beyond = '>=' if rule.highest else '<='",
    'test_beyond_memory.py::test_budgets_that_end_at_a_row',
  ),
  Fault(
    'selection/sql/ranks.py',
    '  _check_rows(connection, tables)\n',
    '',
    'test_beyond_memory.py'
    '::test_rows_that_would_be_counted_twice_or_lost_are_told',
  ),
  Fault(
    'selection/columns.py',
    '      if row.null_count:\n',
    '      if False:\n',
    'test_select.py::test_wrong_names_are_refused_with_the_right_ones',
  ),
  Fault(
    'selection/rules/method.py',
    '  if not 0 <= drop < 1:\n',
    '  if not 0 <= drop <= 1:\n',
    'test_rules.py::test_options_that_cannot_be_are_refused',
  ),
  Fault(
    'selection/rules/method.py',
    'low: rank < lo,',
    'low: rank <= lo,',
    'test_rules.py::test_a_window_up_to_one_includes_one',
  ),
  Fault(
    'selection/rules/external.py',
    '  if len(pc.unique(theirs)) != len(theirs):',
    '  if False:',
    'test_rules.py::test_scar_files_that_do_not_fit_are_refused',
  ),
  Fault(
    'selection/sql/ranks.py',
    '    if nulls:\n',
    '    if False:\n',
    'test_beyond_memory.py'
    '::test_rows_without_a_key_and_tokens_without_a_count_are_told',
  ),
  Fault(
    'selection/sql/engine.py',
    '  if unknown is not None:\n',
    '  if False:\n',
    'test_beyond_memory.py'
    '::test_rows_without_a_key_and_tokens_without_a_count_are_told',
  ),
  # Scoring.
  Fault(
    'scoring/window.py',
    '    if wanted:\n',
    '    if False:\n',
    'test_scorer.py::test_a_term_that_no_batch_scored_is_named',
  ),
  Fault(
    'scoring/window.py',
    '          if (row, name) in self._found:',
    '          if False:',
    'test_scorer.py'
    '::test_a_term_is_scored_once_and_over_the_tokens_of_its_like',
  ),
  Fault(
    'scoring/window.py',
    'counts.setdefault(kind.count, count) != count:',
    'counts.setdefault(kind.count, count) < 0:',
    'test_scorer.py'
    '::test_a_term_is_scored_once_and_over_the_tokens_of_its_like',
  ),
  Fault(
    'scoring/parts.py',
    'if len(hashes) > 1 or not np.array_equal(',
    'if not np.array_equal(',
    'test_store.py::test_a_part_of_another_run_is_refused_by_name',
  ),
  Fault(
    'scoring/store.py',
    'if table.schema.metadata.get(parts_lib.HASH_KEY) != self._hash.encode():',
    'if False:',
    'test_store.py::test_a_damaged_part_is_named',
  ),
  Fault(
    'scoring/store.py',
    'if index >= self.num_windows:',
    'if index > self.num_windows:',
    'test_store.py::test_a_part_beyond_the_input_is_refused_by_name',
  ),
  Fault(
    'scoring/join.py',
    'if left or next(self._parts, None) is not None:',
    'if left:',
    'test_store.py::test_join_refuses_what_is_incomplete_or_of_another_input',
  ),
  Fault(
    'scoring/head.py',
    'return jnp.where(ids_V < self.vocab_size, logits_CV, -jnp.inf)',
    'return logits_CV',
    'test_likelihood.py::test_equals_a_plain_computation',
  ),
  Fault(
    'scoring/join.py',
    '    if written != num_rows:\n',
    '    if written > num_rows:\n',
    'test_store.py::test_embeddings_are_beside_the_parts_and_join_to_one_array',
  ),
  Fault(
    'scoring/metrics.py',
    'good = np.isfinite(nll) & (n > 0)',
    'good = np.isfinite(nll) & (n >= 0)',
    'test_metrics.py::test_nulls_and_zero_counts_are_nan_never_numbers',
  ),
  Fault(
    'scoring/parts.py',
    'if schema is not None and not table.schema.equals(schema):',
    'if False:',
    'test_store.py'
    '::test_parts_without_their_plan_or_with_other_columns_are_refused',
  ),
  # Evaluation.
  Fault(
    'evaluation/pass_at_k.py',
    'z2 / (4 * trials * trials)',
    'z2 / (4 * trials)',
    'test_evaluate_harness.py::test_wilson_interval_equals_scipy',
  ),
  Fault(
    'evaluation/benchmarks.py',
    '    if task.task_id in tasks:\n',
    '    if False:\n',
    'test_evaluate_harness.py::test_a_line_that_cannot_be_used',
  ),
  Fault(
    'evaluation/programs.py',
    '  if missing and not allow_missing:',
    '  if False:',
    'test_evaluate_harness.py::test_samples_files',
  ),
  Fault(
    'evaluation/harness.py',
    "scores[f'{base}_plus'] = benchmark.suites",
    "scores[f'{base}_plus'] = benchmark.suites[1:]",
    'test_evaluate_harness.py::test_plus_is_of_programs_that_pass_both_suites',
  ),
  Fault(
    'evaluation/harness.py',
    '    if not args.allow_code_execution:',
    '    if False:',
    'test_evaluate_harness.py::test_nothing_runs_without_permission',
  ),
  Fault(
    'evaluation/comparison.py',
    'return self.nll_SR.sum(axis=1) / self.n_R.sum()',
    'return (self.nll_SR / self.n_R).mean(axis=1)',
    'test_compare.py::test_loss_is_per_token_and_not_per_row',
  ),
  Fault(
    'evaluation/benchmarks.py',
    '  if not name.isidentifier():\n',
    '  if not name:\n',
    'test_evaluate_harness.py::test_a_task_without_a_test_cannot_be_used',
  ),
  Fault(
    'evaluation/oracles.py',
    'if type(output) is not type(expected) or _shape(output)',
    'if _shape(output)',
    'test_evaluate_harness.py::test_outputs_are_compared_as_evalplus_does',
  ),
  # Generation.
  Fault(
    'generation/sampling.py',
    'logits_BV = logits_BV / temperature',
    'logits_BV = logits_BV * temperature',
    'test_sampling.py::test_filters_equal_those_of_transformers',
  ),
  Fault(
    'generation/sampling.py',
    'key = jax.random.fold_in(jax.random.key(seed), row_seed)',
    'key = jax.random.key(row_seed)',
    'test_sampling.py::test_uniforms_are_of_row_seed_and_number',
  ),
  Fault(
    'generation/stopping.py',
    '    found.append(config.eos_token_id)',
    '    pass',
    'test_stopping.py::test_stop_ids_of_every_file',
  ),
  Fault(
    'generation/stopping.py',
    'return number, text[: min(starts)]',
    'return number, text[: max(starts)]',
    'test_stopping.py::test_of_strings_that_end_together_the_longest_is_cut',
  ),
  Fault(
    'generation/generate.py',
    'if prompt.min() < 0 or prompt.max() >= vocab:',
    'if prompt.min() < 0:',
    'test_generate.py::test_positions_end',
  ),
  # Encoding.
  Fault(
    'encoding/encoder.py',
    "forward, q, a[:kept], 'q', 'a_given_q')",
    "forward, q, a[:in_forward], 'q', 'a_given_q')",
    'test_encode.py::test_truncate_context',
  ),
  Fault(
    'encoding/encoder.py',
    'system = sample.system or self.system_prompt\n    forward, reverse',
    'system = self.system_prompt or sample.system\n    forward, reverse',
    'test_encode.py::test_a_rows_system_prompt_goes_before_the_configs',
  ),
  Fault(
    'encoding/published_ifd.py',
    'kept = min(room, len(one) - heading, len(two) - len(prompt))',
    'kept = min(len(one) - heading, len(two) - len(prompt))',
    'test_encode_published.py'
    '::test_cherry_scores_the_same_answer_tokens_up_to_the_limit',
  ),
  Fault(
    'encoding/examples.py',
    'response = np.concatenate([answer, ending])',
    'response = answer',
    'test_finetune_examples.py'
    '::test_answer_and_end_of_turn_are_trained_and_nothing_else',
  ),
  Fault(
    'encoding/chat.py',
    "    if system != 'none' and len(head) != 2:",
    '    if False:',
    'test_templates.py'
    '::test_a_template_that_puts_the_system_prompt_last_folds_it',
  ),
  Fault(
    'encoding/tokenization.py',
    '      if token in self.marker_ids:',
    '      if False:',
    'test_encode.py::test_system_prompts_per_row',
  ),
  # Models.
  Fault(
    'models/attention/xla.py',
    'mask &= columns > rows - window',
    'mask &= columns >= rows - window',
    'test_decoder.py::test_window_by_gradients',
  ),
  Fault(
    'models/attention/xla.py',
    'mask = mask & (same[:, None, None] if same.ndim == 3 else same)',
    'mask = mask',
    'test_decoder.py::test_packed_rows_equal_separate_ones',
  ),
  Fault(
    'models/hf/tensors.py',
    '    if canonical in self._where:',
    '    if False:',
    'test_checkpoint.py::test_tensor_set_twice',
  ),
  Fault(
    'models/hf/checkpoint.py',
    'if not files.equal(head, embedding):',
    'if False:',
    'test_checkpoint.py::test_tied_head_that_differs',
  ),
  Fault(
    'workdir/checksums.py',
    'return _hashed(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)',
    'return _hashed(path, stat.st_ino, stat.st_size, 0)',
    'test_checkpoint.py::test_fingerprint_follows_contents',
  ),
  Fault(
    'models/rope.py',
    '    if self.truncate:\n',
    '    if True:\n',
    'test_models_parity.py::test_yarn_has_transformers_frequencies',
  ),
  Fault(
    'models/decoder.py',
    '    if limit and tokens_BT.shape[1] > limit:',
    '    if False:',
    'test_decoder.py::test_meshes_that_do_not_fit',
  ),
  Fault(
    'models/hf/read_config.py',
    '  if config.head_dim % 2 and any(k.rope for k in config.layers):',
    '  if False:',
    'test_model_configs.py::test_heads_without_pairs_to_rotate_are_told',
  ),
  Fault(
    'models/cache.py',
    'return (self.length - self.start_B)[:, None]',
    'return (self.length - 0 * self.start_B)[:, None]',
    'test_generate.py::test_neighbours_and_padding_change_nothing',
  ),
  Fault(
    'models/hf/families/llama.py',
    "  if 'sliding_attention' in types and not window:",
    '  if False:',
    'test_model_configs.py::test_wrong_configs_name_key_and_file',
  ),
  Fault(
    'models/hf/families/llama.py',
    '    if hidden % heads:\n',
    '    if False:\n',
    'test_model_configs.py::test_wrong_configs_name_key_and_file',
  ),
  # Data.
  Fault(
    'data/json_document.py',
    '    if document.peek():\n',
    '    if False:\n',
    'test_samples.py::test_what_stands_behind_a_document_is_not_lost',
  ),
  Fault(
    'data/raw.py',
    'except (EOFError, gzip.BadGzipFile, zlib.error) as e:',
    'except EOFError as e:',
    'test_samples.py::test_gzip_with_a_flipped_bit',
  ),
  Fault(
    'data/mapping.py',
    "if len(pairs) > 1 and turns == 'single':",
    "if len(pairs) > 2 and turns == 'single':",
    'test_samples.py::test_more_turns',
  ),
  Fault(
    'data/sample_store.py',
    "    if found != part['sha256']:",
    '    if False:',
    'test_samples.py::test_damaged_samples_are_found_and_written_anew',
  ),
  Fault(
    'data/selected.py',
    "if (stat.st_size, stat.st_mtime_ns) != (file['size'], file['mtime_ns']):",
    "if stat.st_size != file['size']:",
    'test_samples.py::test_parquet_file_and_parts',
  ),
  Fault(
    'data/mapping.py',
    "  if 'messages' in chosen and pair_mapped:",
    '  if False:',
    'test_samples.py::test_wrong_mapping_names_the_columns',
  ),
  Fault(
    'data/sample_store.py',
    "if info.get('version') != VERSION:",
    "if info.get('version', 0) > VERSION:",
    'test_samples.py::test_samples_of_another_layout_are_refused',
  ),
  # The sandbox.
  Fault(
    'sandbox/child/seccomp.py',
    "  'mq_notify': (244, 184),\n",
    '',
    'test_sandbox.py::test_the_filter_of_each_machine',
  ),
  Fault(
    'sandbox/child/seccomp.py',
    '(_AND, 0, 0, 0xFFFFFFFF ^ _SOCKET_FLAGS),',
    '(_AND, 0, 0, 0xFFFFFFFF),',
    'test_sandbox.py::test_the_filter_of_each_machine',
  ),
  Fault(
    'sandbox/child/landlock.py',
    '_allow(ruleset, path, _READ_FILE | _READ_DIR)',
    '_allow(ruleset, path, _READ_FILE | _READ_DIR | 2)',
    'test_sandbox.py::test_no_change_of_the_harness',
  ),
  Fault(
    'sandbox/child/values.py',
    '    hashing.distinct(keys)\n',
    '',
    'test_hostile_values.py'
    '::test_values_of_one_hash_are_refused_where_they_are_hashed',
  ),
  Fault(
    'sandbox/process.py',
    '    if length > max_bytes:',
    '    if False:',
    'test_sandbox.py::test_too_long_a_value',
  ),
  Fault(
    'sandbox/process.py',
    "'RLIMIT_FSIZE': self.tmp_mb * _MB,",
    '',
    'test_sandbox.py::test_a_gigabyte_to_a_file',
  ),
  Fault(
    'sandbox/child/values.py',
    'if max(len(numerator), len(denominator)) > _MAX_HEX:',
    'if len(numerator) > _MAX_HEX:',
    'test_hostile_values.py'
    '::test_a_fraction_too_long_to_be_reduced_is_no_number',
  ),
  Fault(
    'sandbox/process.py',
    "'PYTHONHASHSEED': '0',",
    '',
    'test_sandbox.py::test_the_order_of_a_set_repeats',
  ),
  Fault(
    'sandbox/sandbox.py',
    'if missing and not allow_uncontained:',
    'if len(missing) > 1 and not allow_uncontained:',
    'test_sandbox.py::test_refuses_where_one_thing_would_be_open',
  ),
  # The work directory.
  Fault(
    'workdir/files.py',
    '      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)',
    '      pass',
    'test_workdir.py'
    '::test_a_second_writer_is_refused_and_told_who_the_first_is',
  ),
  Fault(
    'workdir/files.py',
    '      if fits != (key == SEAL):',
    '      if False:',
    'test_workdir.py'
    '::test_json_is_damaged_by_its_own_name_and_sealed_json_by_a_flipped_bit',
  ),
  Fault(
    'workdir/fingerprint.py',
    '    elif key in defaults and one == default:',
    '    elif key in defaults:',
    'test_workdir.py::test_a_key_that_is_not_there_means_its_default',
  ),
  Fault(
    'workdir/journal.py',
    '        if summed and not has_sum:',
    '        if False:',
    'test_workdir.py'
    '::test_a_flipped_bit_anywhere_is_told_with_its_line_or_changes_nothing',
  ),
  Fault(
    'workdir/journal.py',
    '      self._file.truncate(len(self._whole))',
    '      pass',
    'test_workdir.py::test_a_journal_goes_on_after_a_kill_and_repairs_its_end',
  ),
  Fault(
    'workdir/mirror.py',
    'key=lambda one: (not one[1].endswith(checksums.SUFFIX), one)',
    'key=lambda one: (not one[1].endswith(checksums.SUFFIX), one[1])',
    'test_mirror.py::test_what_refers_to_a_file_is_stored_after_it',
  ),
  Fault(
    'workdir/mirror.py',
    '    if info.get(field) is not None:',
    '    if True:',
    'test_mirror.py::test_a_store_that_tells_no_versions_is_refused',
  ),
  # The runtime.
  Fault(
    'runtime/processes.py',
    '    why = _words(e)\n',
    '    pass\n',
    'test_processes.py::test_what_the_first_cannot_do_is_an_error_of_all',
  ),
  Fault(
    'runtime/processes.py',
    "if int(os.environ.get('SLURM_STEP_NUM_TASKS') or 1) > 1:",
    "if os.environ.get('SLURM_STEP_NUM_TASKS'):",
    'test_processes.py::test_the_environment_tells_of_several_processes',
  ),
  Fault(
    'runtime/progress.py',
    '      put(_Failure(e))',
    '      put(_END)',
    'test_scorer.py::test_the_thread_that_works_ahead',
  ),
  Fault(
    'runtime/runlog.py',
    "      text = ''.join(traceback.format_exception(kind, error, trace))\n"
    "      self._log.write('failed', **fields, error=text)",
    "      self._log.write('end', **fields)",
    'test_pipeline.py::test_run_log_has_the_trace_of_a_stage_that_failed',
  ),
  Fault(
    'runtime/chips.py',
    "('v5p', 'v5'),",
    "('v5p',),",
    'test_finetune_loop.py::test_peaks_of_known_devices',
  ),
)
