"""From the values of ``lokr_serve.types`` to TextService's replies."""

from lokr_serve.rpc.conversion.fields import duration_message
from lokr_serve.rpc.conversion.mix_fields import resolved_messages
from lokr_serve.types import Chunk, Finished, Started, Timing, TokenLogprob
from lokr_serve.v1 import text_pb2


def started_message(started: Started) -> text_pb2.Started:
    """Write how a request was admitted."""
    return text_pb2.Started(
        request_id=started.request_id,
        prompt_tokens=started.prompt_tokens,
        adapters=resolved_messages(started.adapters),
        mix_name=started.mix_name,
        apply_mode=f"APPLY_MODE_{started.apply_mode.name}",
        seed=started.seed,
    )


def chunk_message(chunk: Chunk) -> text_pb2.Chunk:
    """Write new tokens."""
    return text_pb2.Chunk(
        index=chunk.index,
        text=chunk.text,
        token_ids=chunk.token_ids,
        logprobs=map(_logprob_message, chunk.logprobs),
    )


def finished_message(finished: Finished) -> text_pb2.Finished:
    """Write the end of a sequence."""
    usage = finished.usage
    return text_pb2.Finished(
        index=finished.index,
        reason=f"FINISH_REASON_{finished.reason.name}",
        stop=_stop_message(finished.stop),
        usage=text_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            completion_tokens=usage.completion_tokens,
        ),
        timing=_timing_message(finished.timing),
    )


def event_message(event: Started | Chunk | Finished) -> text_pb2.GenerateResponse:
    """Write one event of a stream."""
    match event:
        case Started():
            return text_pb2.GenerateResponse(started=started_message(event))
        case Chunk():
            return text_pb2.GenerateResponse(chunk=chunk_message(event))
        case Finished():
            return text_pb2.GenerateResponse(finished=finished_message(event))


def _logprob_message(logprob: TokenLogprob) -> text_pb2.TokenLogprob:
    return text_pb2.TokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        top=[
            text_pb2.TopLogprob(token_id=top.token_id, logprob=top.logprob) for top in logprob.top
        ],
    )


def _stop_message(stop: str | int | None) -> text_pb2.MatchedStop | None:
    match stop:
        case None:
            return None
        case str():
            return text_pb2.MatchedStop(text=stop)
        case int():
            return text_pb2.MatchedStop(token_id=stop)


def _timing_message(timing: Timing) -> text_pb2.Timing:
    return text_pb2.Timing(
        queue=duration_message(timing.queue_seconds),
        first_token=duration_message(timing.first_token_seconds),
        total=duration_message(timing.total_seconds),
    )
