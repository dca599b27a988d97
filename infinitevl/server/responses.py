"""POST /v1/responses, as OpenAI's API has it, without a store."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from infinitevl.server.chat import begin, check_model
from infinitevl.server.context import Owner, Parts, owner_of
from infinitevl.server.errors import ApiError
from infinitevl.server.responses_input import Translation
from infinitevl.server.responses_schema import ResponsesRequest
from infinitevl.server.responses_shape import ResponseShape
from infinitevl.server.sse import cancelled_if_gone, streamed_by_name

router = APIRouter(prefix="/v1", dependencies=[Depends(owner_of)])


@router.post("/responses", response_model=None)
async def responses(
    body: ResponsesRequest,
    request: Request,
    owner: Owner,
    context: Parts,
) -> Response:
    """Answer a text, or a conversation about text, pictures and videos; streamed as events if asked."""
    check_model(body.model, context)
    translation = Translation(body)
    try:
        job = await begin(translation.chat, context)
    except ApiError as error:
        raise translation.named(error) from error
    answer = ResponseShape(body, job, context)
    if body.stream:
        return streamed_by_name(answer.events(), lambda: context.worker.cancel(job))
    async with cancelled_if_gone(request, lambda: context.worker.cancel(job)):
        return JSONResponse(await answer.whole())
