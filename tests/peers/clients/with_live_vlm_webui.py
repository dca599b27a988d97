"""A browser of live-vlm-webui: shows it a video over WebRTC, prints what comes back until there is an answer.

Runs in that package's environment: ADDRESS of the running page.
"""

import asyncio
import json
import sys

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription, VideoStreamTrack

SESSION = "test"


async def main(address: str) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{address}/models") as response:
            print(json.dumps(await response.json()), flush=True)
        async with http.ws_connect(f"{address}/ws?session_id={SESSION}") as socket:
            peer = await connected(http, address)
            async for message in socket:
                event = json.loads(message.data)
                if event["type"] == "vlm_response" and event["metrics"]["total_inferences"]:
                    print(json.dumps(event), flush=True)
                    break
            await peer.close()


async def connected(http: aiohttp.ClientSession, address: str) -> RTCPeerConnection:
    """A connection over which a green picture is shown again and again."""
    peer = RTCPeerConnection()

    @peer.on("track")
    def watch(track) -> None:
        peer.watching = asyncio.ensure_future(drained(track))

    peer.addTrack(VideoStreamTrack())
    await peer.setLocalDescription(await peer.createOffer())
    offer = {"sdp": peer.localDescription.sdp, "type": "offer", "session_id": SESSION}
    async with http.post(f"{address}/offer", json=offer) as response:
        await peer.setRemoteDescription(RTCSessionDescription(**await response.json()))
    return peer


async def drained(track) -> None:
    """The picture that comes back is what drives the page."""
    while True:
        await track.recv()


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 90))
